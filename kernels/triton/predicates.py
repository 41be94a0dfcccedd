"""Why Triton's kernels cannot run a problem, or cannot run here."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch

from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels.triton.program import Program, is_installed, is_interpreted, is_on_host
from hal.kernels.triton.tuning import TABLES

FLOATS = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
# Prefixes of the archs whose machine code is checked (hal-info verify). Older ones have no matrix
# instructions that Triton uses.
ARCHS = ("sm_8", "sm_9", "sm_10", "sm_12", "gfx90a", "gfx942", "gfx950", "gfx11", "gfx12")
OLDEST_TRITON = (3, 6)
PREFERENCE = 80


class HasDType(Protocol):
    """A problem with one element type."""

    @property
    def dtype(self) -> DType: ...


def needs_card(caps: Capabilities, _problem: object) -> str | None:
    """For every kernel here."""
    if caps.vendor not in TABLES:
        return (
            f"Triton compiles for devices of {', '.join(TABLES)}; {caps.name} is of {caps.vendor}"
        )
    if not caps.arch.startswith(ARCHS):
        return f"is compiled and checked for archs {', '.join(ARCHS)}; {caps.name} is {caps.arch}"
    return None


def needs_float(caps: Capabilities, problem: HasDType) -> str | None:
    """For kernels that read and write floats and compute in float32."""
    if problem.dtype not in FLOATS:
        return f"computes on {', '.join(map(str, FLOATS))}; the problem is in {problem.dtype}"
    return needs_card(caps, problem)


@cache
def unavailable() -> str | None:
    """Why no Triton kernel can run on the present device: not installed, no driver, or wrong."""
    if not is_installed():
        return "triton is not installed; torch's builds for GPUs bring it, or pip install triton"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        return f"needs triton {wanted} or newer; {triton.__version__} is installed"
    return _driver_failure() or _smoke_failure()


def _driver_failure() -> str | None:
    from triton.runtime.driver import driver

    if is_interpreted():
        return None
    try:
        driver.active.get_current_target()
    except Exception as error:  # noqa: BLE001  # Triton and the drivers raise what they like
        return f"triton finds no device to compile for: {type(error).__name__}: {error}"
    return None


def _smoke_failure() -> str | None:
    """One small kernel, compiled and run, compared with torch."""
    device = "cpu" if is_on_host() else torch.device("cuda", torch.cuda.current_device())
    x = torch.arange(1.0, 101.0, device=device)
    out = torch.full_like(x, torch.nan)
    try:
        Program("smoke", "running_share").launch((1,), x, out, 100, BLOCK=128)
        error = float((out - x / x.sum()).abs().max())
    except Exception as failure:  # noqa: BLE001  # whatever it raises is the reason
        return f"a first kernel failed: {type(failure).__name__}: {failure}"
    return None if error < 1e-6 else f"a first kernel computed wrong values: off by {error:g}"
