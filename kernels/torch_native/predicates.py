"""Reasons that several torch kernels share; pure, so they hold for absent devices too."""

from __future__ import annotations

from typing import Protocol

from hal.device import Capabilities
from hal.dtypes import DType

FLOATS = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


class HasDType(Protocol):
    """A problem with one element type."""

    @property
    def dtype(self) -> DType: ...


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


def needs_host_reads(caps: Capabilities, problem: object) -> str | None:
    """For kernels that look at results on the host to decide whether a short cut was exact."""
    if caps.is_accelerator:
        return f"reads a result on the host, which stalls an accelerator ({caps.name})"
    return needs_hardware(caps, problem)
