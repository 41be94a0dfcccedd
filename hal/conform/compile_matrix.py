"""Compiles kernels for archs that need not be here: Triton sites in processes of their own.

Triton decides when it is imported whether it compiles, and for whom when it first does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import torch

from hal.devices.cpu import CpuDevice
from hal.errors import ConfigError, UnsupportedError
from hal.kernels import register_all
from hal.kernels.rtc.verify import compile_variants
from hal.kernels.triton.program import is_installed
from hal.kernels.triton.verify.matrix import Compiled, compile_site, read_floors
from hal.kernels.triton.verify.site import Site
from hal.kernels.triton.verify.sites import all_sites
from hal.kernels.triton.verify.targets import capabilities_of, pose_as

NUM_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRequest:
    """archs: to compile for. ops: only these; () = all that have a Triton kernel."""

    archs: tuple[str, ...]
    ops: tuple[str, ...] = ()


def compile_matrix(request: MatrixRequest) -> Iterator[Compiled]:
    """Every cell, in the order of sites within archs.

    Raises ConfigError for an unknown arch or op, UnsupportedError without Triton.
    """
    cells = _cells(request)
    with ProcessPoolExecutor(
        NUM_PROCESSES, mp_context=get_context("spawn"), initializer=start_compiling
    ) as pool:
        try:
            yield from pool.map(_compile, cells, chunksize=4)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def compile_sources(request: MatrixRequest) -> Iterator[Compiled]:
    """The same of kernels in C++, one by one, in this process.

    Where a compiler is missing the cell says so. Raises ConfigError for an unknown arch.
    """
    register_all()
    yield from compile_variants(request.archs, request.ops)


def _cells(request: MatrixRequest) -> list[tuple[str, str]]:
    if not is_installed():
        raise UnsupportedError(
            "the compile matrix needs Triton, which is not installed here: pip install triton"
        )
    for arch in request.archs:
        capabilities_of(arch)
    sites = [site for site in all_sites() if not request.ops or site.op in request.ops]
    for op in request.ops:
        if op not in {site.op for site in sites}:
            known = ", ".join(dict.fromkeys(site.op for site in all_sites()))
            raise ConfigError(f"--op {op}: no Triton kernel of it is compiled; ops: {known}")
    return [(arch, str(site)) for arch in request.archs for site in sites]


def start_compiling() -> None:
    """In a process of its own, before Triton is imported: it compiles, for whom it will be told."""
    os.environ.pop("TRITON_INTERPRET", None)
    # 3.9 warns that its default will change.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    torch.set_num_threads(1)
    register_all()


def _compile(cell: tuple[str, str]) -> Compiled:
    arch, name = cell
    caps = capabilities_of(arch)
    pose_as(caps)
    return compile_site(_sites()[name], CpuDevice(caps), read_floors())


@cache
def _sites() -> dict[str, Site]:
    return {str(site): site for site in all_sites()}
