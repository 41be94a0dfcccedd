"""What a kernel is made from, as one hash: evidence about it holds for exactly that."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from hal.select import Kernel

_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPart:
    """What a package's native module was made from.

    A kernel package whose kernels call compiled code has a function `compiled_part` that returns
    this, or None where it is not known.
    """

    source_hash: str
    compiler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSource:
    """hash: of every source file behind the kernel; compiler: of its compiled part, and where it
    has none the release of torch whose own kernels it calls."""

    hash: str
    compiler: str


def kernel_source(kernel: Kernel) -> KernelSource | None:
    """The source of the module that a kernel is in."""
    return source_of(kernel.implementation.__module__)


def source_of(module_name: str) -> KernelSource | None:
    """A kernel's module, what that takes from its own package tree, and what was compiled.

    None where a part of it cannot be known: then nothing can be claimed about it.
    """
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__file__", None) is None:
        return None
    package = sys.modules.get(module.__name__.rpartition(".")[0])
    part_of = getattr(package, "compiled_part", None)
    part = None if part_of is None else part_of()
    if part_of is not None and part is None:
        return None
    total = hashlib.sha256()
    for name, path in sorted(_files(module)):
        total.update(f"{name} {hash_of_file(path)}\n".encode())
    if part is not None:
        total.update(part.source_hash.encode())
    return KernelSource(
        hash=total.hexdigest()[:_HASH_DIGITS],
        compiler=_torch_release() if part is None else part.compiler,
    )


@cache
def _torch_release() -> str:
    """ "torch 2.13": a release fixes what its kernels compute, a build of it does not."""
    try:
        return f"torch {'.'.join(version('torch').split('.')[:2])}"
    except PackageNotFoundError:
        return ""


def hash_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_of_files(root: Path, paths: Iterable[Path]) -> str:
    """Lines "name hash", sorted; the build computes the same of native sources."""
    lines = sorted(f"{path.relative_to(root).as_posix()} {hash_of_file(path)}" for path in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(module: ModuleType) -> Iterator[tuple[str, Path]]:
    """The module and everything it uses, directly or not, of the same kernel tree."""
    tree = _tree_of(module.__name__)
    seen: set[str] = set()
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        found = sys.modules.get(name)
        if name in seen or found is None or _tree_of(name) != tree:
            continue
        seen.add(name)
        if found.__file__ is not None and Path(found.__file__).suffix == ".py":
            yield name, Path(found.__file__)
        waiting += _names_used(found)


def _names_used(module: ModuleType) -> Iterator[str]:
    if hasattr(module, "__path__"):
        return  # a package imports all of its modules, which says nothing about this kernel
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else _module_of(value)
        if name is not None:
            yield name


def _module_of(value: object) -> str | None:
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else None


def _tree_of(module: str) -> str:
    """All kernels of this distribution are one tree; another package's are its own."""
    return "hal.kernels" if module.startswith("hal.kernels.") else module.partition(".")[0]
