"""C++ kernels compiled by clang to assembly text, without ROCm, and launches of their functions.

`ClangRuntime` is what hal.kernels.rtc compiles and launches by where it is told so.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from amdgpu.launch import Shape, launch
from amdgpu.triton_launches import value_of
from amdgpu.wave import LANES
from hal.kernels.rtc.program import Source

_PROGRAMS = ("amdclang++", "clang++-20", "clang++-19")
_OPTIONS = (
    "-x",
    "hip",
    "--offload-device-only",
    "-nogpulib",
    "-nogpuinc",
    "-std=c++17",
    "-O3",
    "-S",
)


def clang() -> str | None:
    """A clang that is here and compiles for gfx942."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


def assembly_of(source: str, arch: str, definitions: Sequence[str] = ()) -> str:
    """Raises subprocess.CalledProcessError with the compiler's words in its stderr."""
    program = clang()
    assert program is not None, f"none of {', '.join(_PROGRAMS)} is installed"
    command = [program, *_OPTIONS, f"--offload-arch={arch}", "-o", "-", "-", *definitions]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return done.stdout


@dataclass(frozen=True, slots=True)
class ClangFunction:
    """One kernel of a text."""

    text: str
    name: str

    def __call__(
        self,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[torch.Tensor | int | None],
    ) -> None:
        """Runs to its end, on tensors of the host."""
        values = [value_of(argument) for argument in arguments]
        launch(self.text, Shape(threads // LANES), grid, values, kernel=self.name)


class ClangRuntime:
    """A compiler, and the emulator as its driver."""

    def load(self, source: Source, names: Sequence[str]) -> Mapping[str, ClangFunction]:
        """Functions of a source by their names."""
        text = assembly_of(source.text, source.target.arch, source.definitions)
        return {name: ClangFunction(text, name) for name in names}
