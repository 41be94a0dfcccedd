"""CuPy's compiler (NVRTC, or hiprtc in its builds for ROCm) and its driver, for torch's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from hal.errors import UnsupportedError
from hal.kernels.rtc.binaries import kept_binary
from hal.kernels.rtc.program import Argument, Function, Source

_ADVICE = "Choose another kernel with --kernel, and please report this"


@dataclass(frozen=True, slots=True)
class Report:
    """What NVRTC made, and what it says of it. ptx: before registers are given out."""

    binary: bytes
    ptx: str
    log: str


def compile_report(source: Source) -> Report:
    """With registers, spills and shared memory of each kernel in the log; of NVIDIA only."""
    return _compiled(source, ("--ptxas-options=-v",))


def compile_source(source: Source) -> bytes:
    """cubin, or an AMD code object; needs no device. Raises UnsupportedError."""
    return _compiled(source, ()).binary


def _compiled(source: Source, options: tuple[str, ...]) -> Report:
    """Raises UnsupportedError with the compiler's words."""
    name = compiler_name()
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source.text, source.name, (), ())
    try:
        nvrtc.compileProgram(program, (*compile_options(source), *options))
        code, log = nvrtc.getPTX(program), nvrtc.getProgramLog(program)
        if source.target.vendor != "nvidia":  # CuPy calls PTX what hiprtc makes
            return Report(bytes(code), "", log)
        return Report(bytes(nvrtc.getCUBIN(program)), code.decode(), log)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip()
        raise UnsupportedError(
            f"{name} cannot compile {source.name} for {source.target.arch} "
            f"({' '.join(source.definitions)}): {error}: {log[-500:]}. {_ADVICE}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


@dataclass(frozen=True)
class CupyRuntime:
    """Imports CuPy when it is first used: hal must load where CuPy is not."""

    def load(self, source: Source, names: Sequence[str]) -> Mapping[str, Function]:
        binary = kept_binary(_key(source), lambda: compile_source(source))
        from cupy.cuda.function import Module

        try:
            module = Module()
            module.load(binary)
            return {name: _Launch(module.get_function(name)) for name in names}
        except Exception as error:
            raise UnsupportedError(
                f"the driver does not load {', '.join(names)}: {error}. {_ADVICE}"
            ) from error


def _key(source: Source) -> dict[str, str]:
    """All that the machine code depends on, and the driver."""
    name = compiler_name()
    from cupy.cuda import runtime

    return {
        "compiler": name,
        "driver": str(runtime.driverGetVersion()),
        "options": " ".join(compile_options(source)),
        "text": source.text,
    }


def compile_options(source: Source) -> tuple[str, ...]:
    """Of NVRTC, or of hiprtc."""
    if source.target.vendor == "nvidia":
        arch = f"--gpu-architecture={source.target.arch}"
        return (arch, "--std=c++17", *source.definitions)
    return (f"--offload-arch={source.target.arch}", "-std=c++17", "-O3", *source.definitions)


class _Launch:
    """A function of a module; CuPy unloads the module with the last of them."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, grid: tuple[int, int], threads: int, arguments: Sequence[Argument]) -> None:
        stream = _stream(torch.cuda.current_stream().cuda_stream)
        self._function(grid, (threads,), tuple(map(_argument, arguments)), stream=stream)


def _argument(value: Argument) -> Any:
    """As CuPy passes it: Python's integers become 64 bits, which is a pointer."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return 0 if value is None else np.int32(value)


@cache
def _stream(pointer: int) -> Any:
    from cupy.cuda import ExternalStream

    return ExternalStream(pointer)


@cache
def compiler_name() -> str:
    """ "NVRTC 13.0"; raises UnsupportedError without CuPy, or without what it loads."""
    try:
        from cupy.cuda import nvrtc, runtime

        version = ".".join(map(str, nvrtc.getVersion()))
    except Exception as error:
        raise UnsupportedError(
            f"CuPy finds no run-time compiler: {type(error).__name__}: {error}; "
            "pip install cupy-cuda13x nvidia-cuda-nvrtc"
        ) from error
    return f"{'hiprtc' if runtime.is_hip else 'NVRTC'} {version}"
