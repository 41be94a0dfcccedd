"""The null device poses as profiles and fails on command, at the step that was named."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hal.device import MemoryKind
from hal.devices import open_device
from hal.devices.null import NullDevice
from hal.devices.null_spec import Fault, FaultAt, parse_null
from hal.dtypes import DType
from hal.errors import ConfigError, DeviceOutOfMemory, UnsupportedError
from hal.profiles import all_profiles, find_profile

ONE = np.ones(1, dtype=np.float32)


def null(detail: str) -> NullDevice:
    device = open_device(f"null:{detail}").device
    assert isinstance(device, NullDevice)
    return device


def run_step(device: NullDevice) -> None:
    """What a step of the engine does to a device."""
    device.upload(ONE)
    device.record()


@pytest.mark.parametrize("name", list(all_profiles()))
def test_every_profile_can_be_posed_as(name: str) -> None:
    profile = find_profile(name)
    opened = open_device(f"null:{name}")
    device = opened.device
    assert device.posed == profile.capabilities()
    assert opened.spec == f"null:{name}"
    assert opened.reason.startswith(f"poses as {profile.title} ({name}, {profile.arch}, ")
    assert opened.reason.endswith("reference kernels run in host memory")
    assert device.capabilities.vendor == "null" and not device.capabilities.features
    assert device.capabilities.memory.kind is MemoryKind.HOST
    assert device.capabilities.memory.total_bytes <= profile.memory_bytes


def test_an_arch_means_its_first_profile_and_says_so() -> None:
    opened = open_device("null:gfx942")
    assert opened.device.posed == find_profile("mi300x").capabilities()
    assert opened.reason.startswith("gfx942 means its first profile, mi300x; poses as AMD ")


def test_the_plain_null_device_poses_as_nothing() -> None:
    opened = open_device("null")
    assert (opened.device.posed, opened.spec, opened.reason) == (None, "null", "named by --device")


def test_what_a_detail_means() -> None:
    spec = parse_null("h100,oom@17,nan@3")
    assert spec.profile is find_profile("h100")
    assert spec.faults == (FaultAt(Fault.OOM, 17), FaultAt(Fault.NAN, 3))
    assert spec.reason.endswith("; injects oom@17, nan@3")
    plain = parse_null("hang@9")
    assert (plain.profile, plain.faults) == (None, (FaultAt(Fault.HANG, 9),))
    assert plain.reason == "named by --device; injects hang@9"
    assert parse_null("nan@3,oom@3").faults == (FaultAt(Fault.NAN, 3), FaultAt(Fault.OOM, 3))


@pytest.mark.parametrize(
    ("detail", "piece"),
    [
        ("h10", "unknown device profile 'h10'; did you mean h100"),
        ("h100,oom@x", "oom@x: 'x' is no step; steps count from 1, 0 is loading"),
        ("h100,oom@", "oom@: '' is no step"),
        ("h100,oom@-1", "'-1' is no step"),
        ("h100,oom@1.5", "'1.5' is no step"),
        ("h100,oom@²", "'²' is no step"),
        (f"oom@{'9' * 5000}", "is no step"),
        ("oom", "oom: '' is no step"),
        ("h100,oon@3", "'oon' is no fault; did you mean oom. Write null:PROFILE"),
        ("@3", "'' is no fault"),
        ("h100,mi300x", "'mi300x' is no fault, and a profile comes first"),
        ("nan@3,h100", "'h100' is no fault, and a profile comes first"),
        ("oom@3,nan@2,oom@3", "oom@3 stands there twice"),
        ("nan@0", "nan@0: nothing is computed while loading"),
        (",nan@3", "a part is empty"),
        ("h100,", "a part is empty"),
    ],
)
def test_a_wrong_detail_says_what_exists(detail: str, piece: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_device(f"null:{detail}")
    assert piece in caught.value.message
    if "profile" not in piece:
        assert caught.value.message.endswith("faults: oom, nan, hang, crash")


@pytest.mark.parametrize("spec", ["2xnull:h100", "null:0,1"])
def test_several_null_devices_are_refused(spec: str) -> None:
    with pytest.raises(UnsupportedError, match="not supported yet: tensor parallel over 2"):
        open_device(spec)


def test_it_has_no_more_memory_than_what_it_poses_as() -> None:
    device = null("h100")
    total = device.capabilities.memory.total_bytes
    x = device.empty((1 << 22,), DType.UINT8)
    assert device.free_bytes() <= total - device.allocated_bytes() < total
    del x


def test_oom_fails_one_upload_with_sizes_and_the_next_step_is_well() -> None:
    device = null("oom@2")
    device.synchronize()
    run_step(device)
    with pytest.raises(DeviceOutOfMemory) as caught:
        device.upload(np.zeros((3, 4), dtype=np.float32))
    assert "has no room for an upload [3, 4] of float32 (injected by oom@2)" in str(caught.value)
    assert "48 B wanted, 0 B free, 0 B held here" in str(caught.value)
    run_step(device)
    assert device.free_bytes() > 0


def test_oom_at_0_fails_an_allocation_while_loading() -> None:
    device = null("oom@0")
    with pytest.raises(DeviceOutOfMemory, match=r"tensor \[8\] of float32 \(injected by oom@0\)"):
        device.empty((8,), DType.FLOAT32)
    device.empty((8,), DType.FLOAT32)


def test_loading_ends_with_the_first_synchronize() -> None:
    device = null("oom@1")
    run_step(device)
    run_step(device)
    device.synchronize()
    device.synchronize()
    with pytest.raises(DeviceOutOfMemory, match="oom@1"):
        device.upload(ONE)


def test_nan_poisons_the_first_vector_for_exactly_one_step() -> None:
    device = null("nan@2")
    matrix = device.empty((2, 2), DType.FLOAT32)
    weight = device.empty((4,), DType.BFLOAT16)
    other = device.empty((4,), DType.FLOAT32)
    for tensor in (matrix, weight, other):
        tensor.fill_(1.5)  # type: ignore[attr-defined]  # a torch tensor behind the protocol
    device.synchronize()
    seen = []
    for _ in range(3):
        device.upload(ONE)
        seen.append(device.download(weight).tolist())
        assert np.isfinite(device.download(matrix)).all()
        assert np.isfinite(device.download(other)).all()
        device.record()
        assert device.download(weight).tolist() == [1.5] * 4
    assert seen[0] == seen[2] == [1.5] * 4
    assert np.isnan(seen[1]).all()


def test_a_step_that_fails_is_cured_as_well() -> None:
    device = null("nan@1,oom@1")
    weight = device.empty((4,), DType.FLOAT32)
    weight.fill_(2.0)  # type: ignore[attr-defined]
    device.synchronize()
    with pytest.raises(DeviceOutOfMemory):
        device.upload(ONE)
    assert device.download(weight).tolist() == [2.0] * 4


def test_nan_without_a_weight_is_refused() -> None:
    device = null("nan@1")
    device.synchronize()
    with pytest.raises(UnsupportedError, match="nan@1: nothing with a weight vector was loaded"):
        device.upload(ONE)


def test_a_posing_device_lets_go_of_its_memory() -> None:
    device = null("h100,nan@5")
    weight = device.empty((4,), DType.FLOAT32)
    assert device.allocated_bytes() == 16
    del weight
    assert device.allocated_bytes() == 0


def test_crash_ends_the_process_as_a_driver_would() -> None:
    code = (
        "import numpy, hal.devices; device = hal.devices.open_device('null:crash@1').device\n"
        "device.synchronize(); print('loaded', flush=True); device.upload(numpy.ones(1))\n"
        "print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-6, "loaded\n")
    assert done.stderr.splitlines()[-1] == "null device: aborting, injected by crash@1"


def test_hang_can_be_interrupted_and_the_next_step_runs() -> None:
    code = (
        "import signal, numpy, hal.devices\n"
        "device = hal.devices.open_device('null:hang@1').device; device.synchronize()\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "try: device.upload(numpy.ones(1))\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "device.upload(numpy.ones(1)); device.record(); print('well')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\nwell\n"), done.stderr
