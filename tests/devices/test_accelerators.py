"""cuda and rocm without hardware: what properties mean, and what is asked of `torch.cuda`."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded_accelerator import GIB, H100, MI300X, RecordedAccelerator, RecordedCard

from hal.device import Feature, MemoryKind
from hal.devices import cuda, host, rocm
from hal.devices.torch_accelerator import TorchAccelerator
from hal.devices.torch_device import is_out_of_memory
from hal.devices.torch_probe import cards
from hal.errors import DeviceOutOfMemory

AMPERE_UP = {Feature.FP16_MMA, Feature.INT8_MMA, Feature.BF16_MMA, Feature.GRAPHS}
AMD_16_BIT = AMPERE_UP


@pytest.fixture
def api() -> RecordedAccelerator:
    return RecordedAccelerator()


@pytest.fixture
def device(api: RecordedAccelerator) -> TorchAccelerator:
    return TorchAccelerator(cuda.capabilities(H100, api.free_bytes, "13.0"), 0, api, "cpu")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), {Feature.GRAPHS}),
        ((7, 0), {Feature.GRAPHS, Feature.FP16_MMA}),
        ((7, 5), {Feature.GRAPHS, Feature.FP16_MMA, Feature.INT8_MMA}),
        ((8, 0), AMPERE_UP),
        ((8, 6), AMPERE_UP),
        ((8, 9), AMPERE_UP | {Feature.FP8_OCP_MMA}),
        ((9, 0), AMPERE_UP | {Feature.FP8_OCP_MMA}),
        ((12, 1), AMPERE_UP | {Feature.FP8_OCP_MMA}),
    ],
)
def test_nvidia_features(capability: tuple[int, int], expected: set[Feature]) -> None:
    assert cuda.features(*capability) == expected


@pytest.mark.parametrize(
    ("arch", "wave", "expected"),
    [
        ("gfx906", 64, {Feature.GRAPHS}),
        ("gfx90a", 64, AMD_16_BIT),
        ("gfx942", 64, AMD_16_BIT | {Feature.FP8_FNUZ_MMA}),
        ("gfx950", 64, AMD_16_BIT | {Feature.FP8_OCP_MMA}),
        ("gfx1030", 32, {Feature.GRAPHS}),
        ("gfx1100", 32, AMD_16_BIT),
        ("gfx1151", 32, AMD_16_BIT),
        ("gfx1201", 32, AMD_16_BIT | {Feature.FP8_OCP_MMA}),
    ],
)
def test_amd_features_and_wave_size(arch: str, wave: int, expected: set[Feature]) -> None:
    assert rocm.features(arch) == expected
    assert rocm.wave_size(arch) == wave


def test_an_amd_card_keeps_its_identity_under_the_name_cuda() -> None:
    (report,) = cards(RecordedAccelerator(cards=(MI300X,), archs=("gfx942",)), "rocm", "7.0")
    caps = report.capabilities
    assert caps is not None and report.is_usable and report.spec == "rocm:0"
    assert (caps.vendor, caps.arch, caps.simd_width) == ("amd", "gfx942", 64)
    assert caps.versions.runtime == "ROCm 7.0"


def test_an_nvidia_card() -> None:
    reports = cards(RecordedAccelerator(cards=(H100, H100)), "cuda", "13.0")
    assert [r.spec for r in reports] == ["cuda:0", "cuda:1"]
    caps = reports[1].capabilities
    assert caps is not None
    assert (caps.vendor, caps.arch, caps.simd_width) == ("nvidia", "sm_90", 32)
    assert caps.memory.kind is MemoryKind.DEDICATED
    assert (caps.memory.total_bytes, caps.memory.available_bytes) == (80 * GIB, 60 * GIB)
    assert caps.is_accelerator


@pytest.mark.parametrize(
    ("card", "archs", "is_usable"),
    [
        (H100, ("sm_80", "sm_90"), True),
        (H100, ("sm_80",), False),
        (H100, ("sm_80", "compute_80"), True),
        (H100, ("sm_90a",), True),
        (H100, ("sm_100", "compute_100"), False),
        (replace(H100, major=8, minor=6), ("sm_80",), True),
        (replace(H100, major=8, minor=0), ("sm_86",), False),
        (MI300X, ("gfx90a", "gfx942"), True),
        (MI300X, ("gfx90a", "gfx1100"), False),
    ],
)
def test_a_card_that_torch_has_no_code_for(
    card: RecordedCard, archs: tuple[str, ...], is_usable: bool
) -> None:
    spec = "rocm" if card is MI300X else "cuda"
    (report,) = cards(RecordedAccelerator(cards=(card,), archs=archs), spec, "")
    assert report.is_usable is is_usable
    assert is_usable or "no code for" in report.reason


def test_why_the_driver_lists_nothing() -> None:
    broken = RecordedAccelerator(init_error=RuntimeError("CUDA driver too old\nupdate it"))
    assert cards(broken, "cuda", "")[0].reason == "CUDA driver too old"
    hidden = cards(RecordedAccelerator(cards=()), "cuda", "")
    assert [r.is_usable for r in hidden] == [False]
    assert "CUDA_VISIBLE_DEVICES" in hidden[0].reason


def test_a_card_that_does_not_answer_spares_the_report() -> None:
    api = RecordedAccelerator(memory_error=RuntimeError("device is in exclusive mode"))
    (report,) = cards(api, "cuda", "")
    assert (report.spec, report.reason) == ("cuda:0", "device is in exclusive mode")


def test_an_integrated_part_shares_the_hosts_memory(api: RecordedAccelerator) -> None:
    card = replace(H100, is_integrated=1, total_memory=1 << 50)
    caps = cuda.capabilities(card, 1 * GIB, "13.0")
    assert caps.memory.kind is MemoryKind.UNIFIED
    assert caps.memory.available_bytes > 0
    device = TorchAccelerator(caps, 0, RecordedAccelerator(cards=(card,), free_bytes=1), "cpu")
    assert 1 < device.free_bytes() <= host.host_memory().total_bytes


def test_what_torch_keeps_unused_is_free(
    api: RecordedAccelerator, device: TorchAccelerator
) -> None:
    api.reserved_bytes, api.used_bytes = 5 * GIB, 2 * GIB
    assert device.free_bytes() == 63 * GIB


def test_streams_and_events_reach_torch(api: RecordedAccelerator, device: TorchAccelerator) -> None:
    device.record().wait()
    device.synchronize()
    assert api.calls == ["set_device 0", "event.record", "event.synchronize", "synchronize 0"]


def test_capture_records_once_and_replays(
    api: RecordedAccelerator, device: TorchAccelerator
) -> None:
    api.calls.clear()
    replay = device.capture(lambda: api.calls.append("run"))
    replay()
    replay()
    assert api.calls == ["capture begins", "run", "capture ends", "graph.replay", "graph.replay"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("init", ()),
        ("device_count", ()),
        ("get_device_properties", (0,)),
        ("get_arch_list", ()),
        ("mem_get_info", (0,)),
        ("memory_reserved", (0,)),
        ("memory_allocated", (0,)),
        ("set_device", (0,)),
        ("synchronize", (0,)),
        ("Event", ()),
        ("graph", (None,)),
    ],
)
def test_torch_takes_the_calls_that_the_recording_takes(
    name: str, arguments: tuple[object, ...]
) -> None:
    for namespace in (torch.cuda, RecordedAccelerator()):
        inspect.signature(getattr(namespace, name)).bind(*arguments)


def test_torchs_graphs_and_events_have_the_methods_that_are_called() -> None:
    assert callable(torch.cuda.CUDAGraph.replay)
    assert callable(torch.cuda.Event.record) and callable(torch.cuda.Event.synchronize)


def test_torchs_own_error_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA: 2 GiB"))


def test_a_refused_upload_is_a_typed_error(
    device: TorchAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", refuse)
    with pytest.raises(
        DeviceOutOfMemory, match=r"upload \[4\] of float32: 16 B wanted, 60\.00 GiB"
    ):
        device.upload(np.zeros(4, dtype=np.float32))
