"""Conformance of Triton kernels as machine code for cards that are not here, run by an emulator.

The emulator is a test tool of the repository (tests/support/amdgpu) and no part of a wheel: what
runs here runs with a checkout only, and says so elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import hal
from hal.conform.compile_matrix import NUM_PROCESSES, start_compiling
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.report import Summary, summarise
from hal.conformance.run import Record, conform
from hal.device import Capabilities
from hal.devices.cpu import CpuDevice
from hal.errors import ConfigError, UnsupportedError
from hal.kernels import register_all
from hal.kernels.triton.program import is_installed
from hal.kernels.triton.verify.matrix import KERNEL
from hal.select import OPS

EMULATED_ARCHS = ("gfx942", "gfx950")
COMPILED_WITH = "AMDGCN_USE_BUFFER_OPS=0"
"""Code is compiled with this for the emulator, which then sees every address. Users run the default
form; that is compiled and checked beside it."""
_FOLDER = Path("tests/support")
_PACKAGE = "amdgpu"


class _Launches(Protocol):
    """What the emulator's package offers."""

    def emulated(self, arch: str, has_buffer_ops: bool) -> AbstractContextManager[Capabilities]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulationRequest:
    """archs: of EMULATED_ARCHS. ops: only these; () = all with a Triton kernel.

    is_full: every case of the table, which takes an hour; else those of `quick_cases`
    """

    archs: tuple[str, ...] = EMULATED_ARCHS
    ops: tuple[str, ...] = ()
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class EmulatedCase:
    """One case on one arch. has_buffer_ops: in the form that users run; see COMPILED_WITH."""

    arch: str
    op: str
    case: str
    has_buffer_ops: bool = False


@dataclass(frozen=True, slots=True)
class EmulatedRecord:
    """What a case showed on an arch."""

    arch: str
    record: Record


def emulate(request: EmulationRequest) -> Iterator[EmulatedRecord]:
    """Every case, in the order of archs, ops and the table.

    Raises ConfigError for an arch that is not emulated or an op without a Triton kernel, and
    UnsupportedError without a checkout or without Triton.
    """
    yield from run_cases(emulated_cases(request))


def run_cases(cases: Sequence[EmulatedCase]) -> Iterator[EmulatedRecord]:
    """These cases, in their order, in processes that launch nothing else."""
    folder = emulator_folder()
    with ProcessPoolExecutor(
        NUM_PROCESSES,
        mp_context=get_context("spawn"),
        initializer=_start,
        initargs=(str(folder),),
    ) as pool:
        try:
            yield from pool.map(_run, cases)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def emulator_folder() -> Path:
    """Where the emulator's package is; raises UnsupportedError where it cannot be."""
    folder = Path(hal.__file__).resolve().parents[1] / _FOLDER
    if not (folder / _PACKAGE).is_dir():
        raise UnsupportedError(
            f"--execute needs a checkout of the repository: the emulator is a test tool in "
            f"{_FOLDER / _PACKAGE}, and this hal is installed without it"
        )
    if not is_installed():
        raise UnsupportedError(
            "--execute needs Triton, which is not installed here: pip install triton"
        )
    return folder


def emulated_cases(request: EmulationRequest) -> list[EmulatedCase]:
    """What `request` asks for."""
    register_all()
    for arch in request.archs:
        if arch not in EMULATED_ARCHS:
            known = ", ".join(EMULATED_ARCHS)
            raise ConfigError(f"--execute emulates {known}; {arch} is only compiled for")
    ours = [op for op, found in OPS.items() if KERNEL in found.kernels]
    for op in request.ops:
        if op not in ours:
            raise ConfigError(f"--op {op}: no Triton kernel of it; ops: {', '.join(ours)}")
    table = cases_by_op() if request.is_full else quick_cases()
    return [
        EmulatedCase(arch, op, case.label)
        for arch in request.archs
        for op in ours
        if not request.ops or op in request.ops
        for case in table[op]
    ]


def summaries(records: Sequence[EmulatedRecord]) -> Iterator[Summary]:
    """A row for each op on each arch."""
    places = dict.fromkeys((found.arch, found.record.op) for found in records)
    for arch, op in places:
        own = [r.record for r in records if (r.arch, r.record.op) == (arch, op)]
        yield summarise("kernel", op, arch, own)


def _start(folder: str) -> None:
    start_compiling()
    sys.path.insert(0, folder)


def _run(wanted: EmulatedCase) -> EmulatedRecord:
    launches: _Launches = import_module(f"{_PACKAGE}.triton_launches")
    kernel = OPS[wanted.op].kernels[KERNEL]
    case = next(c for c in cases_by_op()[wanted.op] if c.label == wanted.case)
    with launches.emulated(wanted.arch, wanted.has_buffer_ops) as caps:
        record = conform(kernel, case, CpuDevice(caps))
        if record.skipped and kernel.traits.rejects(caps, case.problem) is None:
            # The emulator must run whatever the kernel accepts.
            record = replace(record, skipped="", missing=record.skipped)
    return EmulatedRecord(wanted.arch, record)


# What of an op's cases is run unless all are asked for, by their labels; of other ops, all: every
# kind of case, dtype and format, but not every pair of them.
_QUICK: dict[str, tuple[str, ...]] = {
    # Geometries in which lanes, tiles, blocks and splits end in different places.
    "attention": (
        *("prefill-bfloat16", "decode-bfloat16", "mixed-bfloat16", "lengths-apart-bfloat16"),
        *("groups-of-3-bfloat16", "one-head-bfloat16", "dim-80-bfloat16", "dim-128-bfloat16"),
        *("window-16-chunks-bfloat16", "softcap-window-decode-bfloat16"),
        *("block-8-decode-float16", "speculated-float16", "block-8-float32"),
        *("decode-kv-int8-bfloat16", "window-16-chunks-kv-int8-float16"),
        "lengths-apart-kv-fp8-float16",
    ),
    "grouped_linear": (
        *("*-E3-K33-N17-bfloat16", "int8-E1-K130-N131-float32", "fp8-E4-K64-N48-float16"),
        "int4-g64-asym-E1-K130-N131-float16",
    ),
    "linear": (
        *("*-K33-N17-bias-float16", "int?-K300-N77-bias-float32", "int8-K131-N130-bias-bfloat16"),
        *("int8-a16-K131-N130-bias-bfloat16", "fp8-K131-N130-bias-bfloat16"),
        *("int4-g64-asym-K131-N130-bias-bfloat16", "int4-asym-a16-K131-N130-bias-bfloat16"),
    ),
    "logprobs": ("top5-*", "top20-*-V61-*", "every-id-*"),
    "sample": (
        *("*-smooth-V7-*", "mixed-tied-V7-*", "greedy-*-V1003-*", "mixed-peaked-V1003-*"),
        *("greedy-broken-*", "warm-broken-*"),
    ),
    "vocab": ("*int8-*", "fp8-*"),
}


@cache
def quick_cases() -> dict[str, tuple[Case, ...]]:
    """The part of the table that is run on every change."""
    table = cases_by_op()
    return {
        op: tuple(c for c in cases if any(fnmatchcase(c.label, p) for p in _QUICK.get(op, ("*",))))
        for op, cases in table.items()
    }
