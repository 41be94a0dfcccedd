"""What follows for a device from its capabilities and the kernels that accept it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from hal import opset
from hal.cli.info.sites import example_attention, example_linear
from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.errors import SelectionError
from hal.select import Level, Selection, Selector
from hal.weights import WEIGHT_FORMATS

_HEAD_SIZES = (32, 48, 64, 72, 80, 96, 112, 120, 128, 160, 192, 256, 512, 576)


class Support(StrEnum):
    """How a device multiplies matrices of one element type."""

    NATIVE = "native"
    UPCAST = "upcast"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class MatrixSupport:
    """`note` says who upcasts, or that no kernel uses what the hardware has."""

    dtype: str
    support: Support
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """fp8: the flavour of its 8-bit floats, "OCP", "FNUZ" or ""; sizes: of the attention kernel
    that is chosen for the example model."""

    matrix: tuple[MatrixSupport, ...]
    fp8: str
    block_sizes: tuple[int, ...]
    head_sizes: tuple[int, ...]


_FEATURES = {
    DType.FLOAT16: Feature.FP16_MMA,
    DType.BFLOAT16: Feature.BF16_MMA,
    DType.INT8: Feature.INT8_MMA,
    DType.FLOAT8_E4M3FN: Feature.FP8_OCP_MMA,
    DType.FLOAT8_E4M3FNUZ: Feature.FP8_FNUZ_MMA,
}
# What activations can be in.
_COMPUTED = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


def device_facts(caps: Capabilities, dtype: DType, *, is_present: bool = True) -> DeviceFacts:
    """Facts for models in `dtype`; kernels must be registered."""
    selector = Selector(caps, is_present=is_present)
    chosen = _select_attention(selector, dtype)
    return DeviceFacts(
        matrix=tuple(_matrix(selector, dtype) for dtype in (DType.FLOAT32, *_FEATURES)),
        fp8=_fp8_flavour(caps),
        block_sizes=() if chosen is None else _block_sizes(chosen),
        head_sizes=() if chosen is None else _head_sizes(caps, chosen),
    )


def _matrix(selector: Selector, dtype: DType) -> MatrixSupport:
    has_instructions = dtype not in _FEATURES or _FEATURES[dtype] in selector.caps.features
    if dtype not in _COMPUTED:
        if not has_instructions:
            return MatrixSupport(str(dtype), Support.ABSENT)
        is_used = dtype is DType.INT8 and _multiplies_codes(selector)
        return MatrixSupport(str(dtype), Support.NATIVE, "" if is_used else "no kernel uses it yet")
    try:
        selection = selector.select(opset.linear, example_linear(dtype))
    except SelectionError as error:
        return MatrixSupport(str(dtype), Support.ABSENT, error.message)
    if dtype is DType.FLOAT32 or selection.level is Level.NATIVE:
        return MatrixSupport(str(dtype), Support.NATIVE)
    return MatrixSupport(str(dtype), Support.UPCAST, f"in float32 by {selection.kernel.name}")


def _multiplies_codes(selector: Selector) -> bool:
    """Whether --quantization runs on the device's int8 instructions."""
    linear = replace(example_linear(DType.BFLOAT16), weights=WEIGHT_FORMATS["int8"])
    return selector.select(opset.linear, linear).level is Level.NATIVE


def _fp8_flavour(caps: Capabilities) -> str:
    if Feature.FP8_OCP_MMA in caps.features:
        return "OCP"
    return "FNUZ" if Feature.FP8_FNUZ_MMA in caps.features else ""


def _select_attention(selector: Selector, dtype: DType) -> Selection | None:
    try:
        return selector.select(opset.attention, example_attention(dtype))
    except SelectionError:
        return None


def _block_sizes(chosen: Selection) -> tuple[int, ...]:
    sizes: tuple[int, ...] = chosen.kernel.implementation.legal_block_sizes  # type: ignore[attr-defined]
    return sizes


def _head_sizes(caps: Capabilities, chosen: Selection) -> tuple[int, ...]:
    """The usual ones that the chosen kernel's predicate accepts."""
    rejects = chosen.kernel.traits.rejects
    return tuple(
        size
        for size in _HEAD_SIZES
        if rejects(caps, replace(chosen.problem, head_dim=size)) is None
    )
