"""Reasons that several torch kernels share; pure, so they hold for absent devices too."""

from __future__ import annotations

from typing import Protocol

from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.kernels.reference.weight_rows import HasWeights, needs_unquantized
from hal.select import Level

FLOATS = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
UPCAST_COST = "no matrix instructions of this type: converted, then multiplied in float32"

_MATRIX_FEATURE = {DType.BFLOAT16: Feature.BF16_MMA, DType.FLOAT16: Feature.FP16_MMA}


class HasDType(Protocol):
    """A problem with one element type."""

    @property
    def dtype(self) -> DType: ...


def product_level(caps: Capabilities, problem: HasDType) -> Level:
    """Matrix products of a 16-bit type are native only where the device multiplies that type."""
    feature = _MATRIX_FEATURE.get(problem.dtype)
    return Level.NATIVE if feature is None or feature in caps.features else Level.UPCAST


def needs_hardware(caps: Capabilities, _problem: object) -> str | None:
    """For every kernel here: the null device exists to run the specification."""
    if caps.vendor == "null":
        return f"{caps.name} runs reference kernels only"
    return None


def needs_float(caps: Capabilities, problem: HasDType) -> str | None:
    """For kernels that compute in the dtype itself, with float32 inside where torch has it."""
    if problem.dtype not in FLOATS:
        return f"torch computes in {', '.join(map(str, FLOATS))}; the problem is in {problem.dtype}"
    return needs_hardware(caps, problem)


def needs_fast_product(caps: Capabilities, problem: HasDType) -> str | None:
    """For matrix products: torch has no fast float16 path on CPUs."""
    if problem.dtype is DType.FLOAT16 and not caps.is_accelerator:
        return (
            f"torch multiplies float16 about 8x slower than float32 on a CPU ({caps.arch}); "
            "choose bfloat16 or float32"
        )
    return needs_float(caps, problem)


def needs_plain_product(caps: Capabilities, problem: HasWeights) -> str | None:
    """For products with a stored weight."""
    return needs_fast_product(caps, problem) or needs_unquantized(caps, problem)


def needs_host_reads(caps: Capabilities, problem: object) -> str | None:
    """For kernels that look at results on the host to decide whether a short cut was exact."""
    if caps.is_accelerator:
        return f"reads a result on the host, which stalls an accelerator ({caps.name})"
    return needs_hardware(caps, problem)
