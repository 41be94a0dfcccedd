"""Triton functions, found when they are first launched: hal must load where Triton is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hal.errors import UnsupportedError

# What a launch does instead where there is no device: program, grid, arguments, constants.
Observer = Callable[["Program", tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
_observers: list[Observer] = []


class Program:
    """The function `name` of `src/<source>.py`."""

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.name = name

    def __str__(self) -> str:
        return f"{self.source}.{self.name}"

    @cached_property
    def function(self) -> Any:
        """Triton's own object; importing it compiles nothing."""
        return getattr(import_module(f"hal.kernels.triton.src.{self.source}"), self.name)

    def launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Run on torch's current stream. constants: the function's constants and compile options.

        The first launch of a new set of constants and element types compiles. Raises
        UnsupportedError where Triton cannot compile it.
        """
        if _observers:
            _observers[-1](self, grid, arguments, constants)
            return
        if 0 in grid:
            return
        try:
            self.function[grid](*arguments, **constants)
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            raise UnsupportedError(
                f"Triton cannot compile {self} with {constants}: {type(error).__name__}: {error}. "
                "Choose another kernel with --kernel, and please report this"
            ) from error


def _is_of_compiler(error: Exception) -> bool:
    """Triton has no common base of what its compilers raise; all of it is defined there."""
    module = type(error).__module__
    is_compilers = module.startswith(("triton.compiler", "triton.runtime.errors"))
    return is_compilers or "PassManager" in str(error)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Within, launches of this process go to `observer`; Triton itself runs nothing."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.pop()


def is_installed() -> bool:
    """Whether Triton can be imported; looks for it only."""
    return find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton runs its functions in Python (TRITON_INTERPRET=1), on tensors of the host."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def is_on_host() -> bool:
    """Whether launches of this process take tensors of the host: interpreted or observed."""
    return bool(_observers) or is_interpreted()


def next_power_of_2(n: int) -> int:
    """The sizes that Triton's blocks have; n >= 1."""
    return 1 << (n - 1).bit_length()
