"""Where the native kernels cannot run they say why, on any machine."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pytest
import torch

from hal.device import Capabilities, Feature, Memory, MemoryKind
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.opset.linear import LinearProblem
from hal.opset.norm import NormProblem
from hal.weights import WEIGHT_FORMATS

CAPS = Capabilities(
    vendor="x86",
    name="a server CPU",
    arch="x86_avx512_bf16",
    memory=Memory(kind=MemoryKind.HOST, total_bytes=1, available_bytes=1),
    compute_units=2,
    simd_width=16,
    features=frozenset({Feature.AVX512, Feature.AVX512_BF16}),
    is_accelerator=False,
)
BF16 = NormProblem(hidden_size=8, dtype=DType.BFLOAT16)


def reason(caps: Capabilities, problem: NormProblem = BF16) -> str:
    return native.needs_avx512_bf16(caps, problem) or ""


def test_accepts_the_cpu_it_is_made_for() -> None:
    assert native.needs_avx512_bf16(CAPS, BF16) is None


def test_names_the_missing_instructions_and_what_there_is() -> None:
    assert "avx512_bf16; a server CPU has avx2" in reason(
        replace(CAPS, features=frozenset({Feature.AVX2}))
    )


def test_names_the_dtype_it_cannot_compute_in() -> None:
    assert "float16" in reason(CAPS, NormProblem(hidden_size=8, dtype=DType.FLOAT16))


@pytest.mark.parametrize("change", [{"vendor": "null"}, {"is_accelerator": True}])
def test_runs_on_real_cpus_only(change: dict[str, object]) -> None:
    assert "a server CPU" in reason(replace(CAPS, **change))  # type: ignore[arg-type]


def test_a_missing_module_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> ModuleType:
        raise ImportError("no module named _C")

    monkeypatch.setattr(native, "load", load)
    assert "not built (no module named _C)" in (native.unavailable.__wrapped__() or "")


class OldModule(ModuleType):
    """Built before there were codes."""

    def has_avx512_bf16_kernels(self) -> bool:
        return True


class WrongModule(OldModule):
    """Leaves `out` as it was."""

    def quantize_rows(self, *_: object) -> int:
        return 0

    def quantized_product(self, *_: object) -> None:
        return None

    def quantized_linear(self, *_: object) -> None:
        return None


@pytest.mark.parametrize(
    ("module", "said"),
    [(OldModule("_C"), "built from older sources"), (WrongModule("_C"), "in codes of int8 gave")],
)
def test_a_module_without_working_codes_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, said: str
) -> None:
    monkeypatch.setattr(native, "load", lambda: module)
    monkeypatch.setattr(native, "unavailable", lambda: None)
    monkeypatch.setattr(torch, "empty", torch.zeros)
    assert said in (native.quantized_unavailable.__wrapped__() or "")


def test_needs_both_sets_of_instructions_and_a_format() -> None:
    vnni = replace(CAPS, features=CAPS.features | {Feature.AVX512_VNNI})
    int8 = LinearProblem(
        in_features=8, out_features=8, dtype=DType.BFLOAT16, weights=WEIGHT_FORMATS["int8"]
    )
    assert native.needs_avx512_vnni(vnni, int8) is None
    assert "needs avx512_vnni; a server CPU" in (native.needs_avx512_vnni(CAPS, int8) or "")
    plain = replace(int8, weights=None)
    assert "keeps them in bfloat16" in (native.needs_avx512_vnni(vnni, plain) or "")
    kept = replace(int8, weights=WEIGHT_FORMATS["int8-a16"])
    said = native.needs_avx512_vnni(vnni, kept) or ""
    assert said == "rounds activations to int8; int8-a16 keeps them in bfloat16"
    assert native.needs_plain_weights(vnni, plain) is None
    assert "asks for int8" in (native.needs_plain_weights(vnni, int8) or "")


def test_arguments_are_prepared_again_only_when_one_is_another_object() -> None:
    prepared: list[tuple[torch.Tensor, float]] = []
    threads: list[int] = []

    def prepare(x: torch.Tensor, scale: float) -> Callable[[int], object]:
        prepared.append((x, scale))
        return threads.append

    call = native.Repeated()
    x, scale = torch.zeros(1), 0.5
    call(prepare, x, scale)
    call(prepare, x, scale)
    call(prepare, torch.zeros(1), scale)
    call(prepare, x, scale)
    assert [seen is x for seen, _ in prepared] == [True, False, True]
    assert threads == 4 * [torch.get_num_threads()]


def test_decoding_needs_its_own_instructions_and_a_format_that_keeps_activations() -> None:
    vbmi = replace(CAPS, features=CAPS.features | {Feature.AVX512_VBMI})
    fp8 = LinearProblem(
        in_features=8, out_features=8, dtype=DType.BFLOAT16, weights=WEIGHT_FORMATS["fp8"]
    )
    assert native.needs_avx512_vbmi(vbmi, fp8) is None
    assert "needs avx512_vbmi; a server CPU" in (native.needs_avx512_vbmi(CAPS, fp8) or "")
    rounded = replace(fp8, weights=WEIGHT_FORMATS["int4-asym"])
    said = native.needs_avx512_vbmi(vbmi, rounded) or ""
    assert said == "keeps activations in bfloat16; int4-asym rounds them to int8"
    plain = replace(fp8, weights=None)
    assert "keeps them in bfloat16" in (native.needs_avx512_vbmi(vbmi, plain) or "")


def test_a_layout_that_decodes_wrongly_is_a_reason_with_its_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if native.decoded_unavailable() is not None:
        pytest.skip("no native module, or a CPU without VBMI")
    assert native.decoded_unavailable.__wrapped__() is None
    monkeypatch.setattr(native, "load", lambda: Swapped("_C"))
    assert "in codes of int8-a16 gave" in (native.decoded_unavailable.__wrapped__() or "")


class Swapped(ModuleType):
    """Reads int8 as fp8 where it decodes, and the other way round."""

    def __getattr__(self, name: str) -> object:
        return getattr(import_module("hal.kernels.cpu._C"), name)

    def quantized_linear(self, *arguments: int) -> None:
        codes = {0: 0, 1: 2, 2: 1}[arguments[9]]
        module = import_module("hal.kernels.cpu._C")
        module.quantized_linear(*arguments[:9], codes, *arguments[10:])


def test_a_weight_ends_with_its_last_use() -> None:
    """Not at some later time, when Python looks for circles: that may be gigabytes."""
    if native.unavailable() is not None:
        pytest.skip("no native module")
    weight = PackedWeight(16, 2, DType.BFLOAT16)
    packed = torch.zeros(32, dtype=torch.bfloat16)
    weight.address = packed.data_ptr()
    x, out = torch.zeros(1, 2, dtype=torch.bfloat16), torch.empty(1, 16)
    weight.multiply(x, out)
    ended = weakref.ref(weight)
    gc.disable()
    try:
        del weight
        assert ended() is None
    finally:
        gc.enable()
