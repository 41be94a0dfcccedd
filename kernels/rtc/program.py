"""C++ sources of src/, compiled for one device when they are first needed, and their launches."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from hal.kernels.rtc.arch import Target

SOURCES = Path(__file__).with_name("src")
THREADS = 256  # of a block
Argument = torch.Tensor | int | None
Constant = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of src/ for one arch. constants: preprocessor names, without their prefix HAL_."""

    name: str
    target: Target
    constants: frozenset[Constant]

    @property
    def files(self) -> tuple[str, ...]:
        """In the order in which they are one text."""
        return (*self.target.headers, self.name)

    @property
    def text(self) -> str:
        """A compiler needs no other file and no include path."""
        return joined(SOURCES / name for name in self.files)

    @property
    def definitions(self) -> tuple[str, ...]:
        constants = {*self.constants, ("THREADS", THREADS)}
        return tuple(sorted(f"-DHAL_{name}={value}" for name, value in constants))


def joined(paths: Iterable[Path]) -> str:
    """Several files as one, which messages of a compiler still tell apart."""
    return "".join(f'#line 1 "{path.name}"\n{path.read_text(encoding="utf-8")}' for path in paths)


class Function(Protocol):
    """A kernel of a loaded binary."""

    def __call__(self, grid: tuple[int, int], threads: int, arguments: Sequence[Argument]) -> None:
        """Run on torch's current stream: pointers of tensors, and 32-bit integers."""


class Runtime(Hashable, Protocol):
    """A compiler and a driver; equal ones make the same."""

    def load(self, source: Source, names: Sequence[str]) -> Mapping[str, Function]:
        """Compiled for its target, on torch's current device.

        Raises UnsupportedError with the words of the compiler or of the driver.
        """


_runtimes: list[Runtime] = []


def runtime() -> Runtime:
    """CuPy's, unless `using` another one."""
    if not _runtimes:
        from hal.kernels.rtc.cupy_runtime import CupyRuntime

        return CupyRuntime()
    return _runtimes[-1]


def is_emulated() -> bool:
    """Whether another runtime than CuPy's runs the kernels, on tensors of the host."""
    return bool(_runtimes)


@contextmanager
def using(other: Runtime) -> Iterator[None]:
    """Within, kernels of this process are compiled and run by `other`."""
    _runtimes.append(other)
    try:
        yield
    finally:
        _runtimes.pop()


def load_functions(source: Source, names: Sequence[str]) -> Mapping[str, Function]:
    """Kernels on torch's current device; layers share what they load. Raises UnsupportedError."""
    device = 0 if is_emulated() else torch.cuda.current_device()
    return _loaded(runtime(), device, source, tuple(names))


@cache
def _loaded(
    by: Runtime, _device: int, source: Source, names: tuple[str, ...]
) -> Mapping[str, Function]:
    return by.load(source, names)
