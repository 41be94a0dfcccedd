"""Why the kernels of this folder cannot run a problem, or cannot run here."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels.rtc.program import is_emulated

# Less than Triton's until a card has shown which is faster.
PREFERENCE = 75
SIXTEEN_BITS = (DType.BFLOAT16, DType.FLOAT16)
_WIDE = 8  # values of 16 bits in 16 bytes


class HasDType(Protocol):
    """A problem with one element type."""

    @property
    def dtype(self) -> DType: ...


def needs_sixteen_bits(_caps: Capabilities, problem: HasDType) -> str | None:
    """For kernels whose matrix instruction takes 16-bit floats."""
    if problem.dtype in SIXTEEN_BITS:
        return None
    return f"computes on {', '.join(map(str, SIXTEEN_BITS))}; the problem is in {problem.dtype}"


def needs_wide_rows(in_features: int) -> str | None:
    """For kernels that load activations 16 bytes at a time."""
    if in_features % _WIDE == 0:
        return None
    return f"loads {_WIDE} activations at once; {in_features} columns are no multiple of {_WIDE}"


def no_runtime() -> str | None:
    """Why nothing can be compiled and run here; looks for CuPy only, and does not import it."""
    if is_emulated() or find_spec("cupy") is not None:
        return None
    return (
        "needs CuPy, which is not installed: pip install cupy-cuda13x, or CuPy's build for the "
        "ROCm that is here"
    )
