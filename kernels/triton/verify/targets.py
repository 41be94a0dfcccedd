"""Archs to compile for, and the driver that poses as one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hal.device import Capabilities
from hal.errors import ConfigError
from hal.kernels.triton.predicates import ARCHS
from hal.kernels.triton.tuning import TABLES
from hal.profiles import all_profiles, find_profile

DEFAULT_ARCHS = (
    *("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"),
    *("sm_80", "sm_89", "sm_90", "sm_100"),
)


def capabilities_of(arch: str) -> Capabilities:
    """Of the first profile of that arch; raises ConfigError where Triton's kernels have none."""
    caps = find_profile(arch).capabilities()
    if caps.vendor not in TABLES or not caps.arch.startswith(ARCHS):
        known = {p.arch for p in all_profiles().values() if p.arch.startswith(ARCHS)}
        raise ConfigError(
            f"--targets {arch}: Triton's kernels compile for {', '.join(sorted(known))}"
        )
    return caps


@dataclass(frozen=True, slots=True)
class PosedDriver:
    """The part of a Triton driver that compilation asks; there is no device behind it."""

    target: Any
    number: int

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        """One for each arch, so that what is compiled for one is not found for another."""
        return self.number

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, _type: str) -> str:
        return "void*"


def pose_as(caps: Capabilities, form: int = 0) -> None:
    """From here on, Triton compiles for this arch in this process, which launches nothing.

    form: another one where Triton is told by the environment to compile otherwise, which it does
    not notice by itself
    """
    from triton.runtime.driver import driver

    archs = sorted({p.arch for p in all_profiles().values()})
    number = form * len(archs) + archs.index(caps.arch)
    driver.set_active(PosedDriver(_triton_target(caps), number))


def _triton_target(caps: Capabilities) -> Any:
    from triton.backends.compiler import GPUTarget

    if caps.vendor == "nvidia":
        return GPUTarget("cuda", int(caps.arch.removeprefix("sm_")), caps.simd_width)
    return GPUTarget("hip", caps.arch, caps.simd_width)
