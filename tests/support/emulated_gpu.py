"""The C++ kernels of kernels/rtc on tensors of the host: their source, compiled by the host's
compiler with emulated_gpu.h in place of the vendor's header."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hal.kernels.rtc.program import SOURCES, Argument, Function, Source, joined

_HEADER = Path(__file__).with_name("emulated_gpu.h")
COMPILER = os.environ.get("CXX") or shutil.which("c++") or ""


def compile_text(text: str, definitions: Sequence[str], library: Path) -> None:
    """Kernels behind the emulation's header, as a shared library."""
    options = ("-x", "c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE")
    subprocess.run(
        [COMPILER, *options, *definitions, "-o", str(library), "-"],
        input=joined([_HEADER]) + text,
        text=True,
        check=True,
        capture_output=True,
    )


@dataclass(frozen=True)
class HostRuntime:
    """folder: for what is compiled."""

    folder: Path

    def load(self, source: Source, names: Sequence[str]) -> Mapping[str, Function]:
        (_, tile_header) = source.target.headers
        text = joined([SOURCES / tile_header, SOURCES / source.name])
        stamp = hashlib.sha256((text + repr(source)).encode()).hexdigest()[:16]
        path = self.folder / f"{source.name}-{stamp}.so"
        warp = f"-DHAL_WARP={source.target.order.warp}"
        compile_text(text, (warp, *source.definitions), path)
        library = ctypes.CDLL(str(path))
        return {name: _Launch(library, name) for name in names}


class _Launch:
    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._launch = library.launch
        self._kernel = ctypes.cast(getattr(library, name), ctypes.c_void_p)

    def __call__(self, grid: tuple[int, int], threads: int, arguments: Sequence[Argument]) -> None:
        words = [_word(argument) for argument in arguments]
        array = (ctypes.c_longlong * len(words))(*words)
        self._launch(self._kernel, *grid, threads, array, len(words))


def _word(argument: Argument) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    return argument or 0
