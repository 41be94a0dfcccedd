"""Why the kernels of this folder cannot run a problem, or cannot run here."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from hal.device import Capabilities
from hal.dtypes import DType
from hal.errors import HalError
from hal.kernels.rtc.program import is_emulated, runtime

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


@cache
def no_runtime() -> str | None:
    """Why nothing can be compiled and run here: no CuPy, no compiler, no driver."""
    if is_emulated():
        return None
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"needs CuPy (pip install cupy-cuda13x, or the extra hal-runtime[cuda]): {error}"
    except Exception as error:  # noqa: BLE001  # a driver that is too old, whatever it raises
        return f"CuPy does not start: {type(error).__name__}: {error}"
    try:
        runtime().compiler()
    except HalError as error:
        return error.message
    return None
