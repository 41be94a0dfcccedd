"""Paged attention alone on the CPU: decode against the machine's read bandwidth, prefill in FLOP/s.

    python benchmarks/cpu_attention.py --threads 2 --build before=/tmp/old/_C.so

Each --build names another build of the native module; its runs alternate with those of the
installed one, after their outputs were compared. A decode run visits as many layers' caches as
exceed the processor's, as a model's step does. The machine may be shared, so the fastest of many
runs judges, and with one thread its CPU time; with more, wall time, as waiting threads may spin.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import record
import torch

import hal.kernels
from hal.binding import Arena, Binder
from hal.devices.cpu import CpuDevice
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.attention import NativeAttention
from hal.kv import KV_FORMATS
from hal.opset.attention import AttentionMeta, AttentionProblem, AttentionSpec
from hal.select import Selector

BLOCK_SIZE = 16
COLD_BYTES = 192 << 20  # several times the last cache of the machines we measure on
CEILING_BYTES = 512 << 20
MIN_RUNS = 5


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, KV heads and head_dim of a model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.num_heads}/{self.num_kv_heads}/{self.head_dim}"


@dataclass(frozen=True, slots=True)
class Case:
    """num_seqs sequences of seq_len tokens, the last q_len of them new; kv: auto or int8."""

    heads: Heads
    num_seqs: int
    q_len: int
    seq_len: int
    kv: str = "auto"

    @property
    def is_decode(self) -> bool:
        return self.q_len == 1

    def __str__(self) -> str:
        kind = "decode" if self.is_decode else "prefill"
        cache = "" if self.kv == "auto" else f" kv {self.kv}"
        return f"{kind} {self.heads} batch {self.num_seqs} context {self.seq_len}{cache}"

    @property
    def num_layers(self) -> int:
        return max(1, -(-COLD_BYTES // self.kv_bytes)) if self.is_decode else 1

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V of one layer that must be read, scales included."""
        head_bytes = self.heads.head_dim + 2 if self.kv == "int8" else 2 * self.heads.head_dim
        return 2 * head_bytes * self.num_seqs * self.seq_len * self.heads.num_kv_heads

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products of one layer, causal half only."""
        before = self.seq_len - self.q_len
        pairs = self.q_len * before + self.q_len * (self.q_len + 1) // 2
        return 4 * self.num_seqs * pairs * self.heads.num_heads * self.heads.head_dim


@dataclass(frozen=True, slots=True)
class Row:
    """One build's runs of one case. Rates are GB/s of K and V read, or GFLOP/s in prefill."""

    case: str
    build: str
    num_layers: int
    wall_ms: record.Spread
    cpu_ms: record.Spread
    best_rate: float
    median_rate: float
    share_of_read_bandwidth: float | None


SHAPES = (Heads(14, 2, 64), Heads(32, 8, 64), Heads(32, 8, 128))
DECODES = tuple((batch, seq_len) for batch in (1, 8) for seq_len in (512, 2048, 8192))
PREFILLS = (1024, 4096)


def cases(kv: str) -> list[Case]:
    decodes = [Case(heads, b, 1, n, kv) for heads in SHAPES for b, n in DECODES]
    return decodes + [Case(heads, 1, n, n, kv) for heads in SHAPES for n in PREFILLS]


class Scene:
    """Random tokens in the paged caches of several layers, their blocks in random order."""

    def __init__(self, case: Case) -> None:
        device = CpuDevice()
        h = case.heads
        problem = AttentionProblem(
            num_heads=h.num_heads,
            num_kv_heads=h.num_kv_heads,
            head_dim=h.head_dim,
            dtype=DType.BFLOAT16,
            block_size=BLOCK_SIZE,
            spec=AttentionSpec(scale=h.head_dim**-0.5, kv_dtype=KV_FORMATS.get(case.kv)),
        )
        binder = Binder(Selector(device.capabilities), Arena(case.num_seqs * case.q_len), device)
        self.family = NativeAttention(problem, binder)
        blocks = case.num_seqs * -(-case.seq_len // BLOCK_SIZE)
        # One cache cut up, because a real one is many huge pages large.
        pool = device.empty(self.family.kv_shape(case.num_layers * blocks), problem.kv_storage)
        assert isinstance(pool, torch.Tensor)
        self._kv = pool.split(blocks)
        num_tokens = case.num_seqs * case.q_len
        self._qkv = torch.randn(num_tokens, problem.qkv_width).to(torch.bfloat16)
        self.out = torch.empty(num_tokens, h.num_heads * h.head_dim, dtype=torch.bfloat16)
        meta = _meta(case, blocks)
        self._fill(pool, meta)
        self.family.plan(meta)

    def _fill(self, pool: torch.Tensor, meta: AttentionMeta) -> None:
        """Every slot through the family: codes need scales that fit them."""
        rows = torch.randn(16 * BLOCK_SIZE, self.family.problem.qkv_width).to(torch.bfloat16)
        for first in range(0, len(pool) * BLOCK_SIZE, len(rows)):
            slots = torch.arange(first, min(first + len(rows), len(pool) * BLOCK_SIZE))
            self.family.plan(replace(meta, slot_mapping_device=slots))
            self.family.write_kv(rows[: len(slots)], pool)

    def run(self) -> None:
        for cache in self._kv:
            self.family.attend(self._qkv, cache, self.out)


def _meta(case: Case, num_blocks: int) -> AttentionMeta:
    order = np.random.default_rng(4).permutation(num_blocks).astype(np.int32)
    starts = np.arange(case.num_seqs + 1, dtype=np.int32) * case.q_len
    lens = np.full(case.num_seqs, case.seq_len, np.int32)
    table = order.reshape(case.num_seqs, -1)
    slots = np.zeros(case.num_seqs * case.q_len, np.int64)  # overwritten
    return AttentionMeta(
        cu_seqlens_q=starts,
        seq_lens=lens,
        block_table=table,
        slot_mapping=slots,
        cu_seqlens_q_device=torch.from_numpy(starts),
        seq_lens_device=torch.from_numpy(lens),
        block_table_device=torch.from_numpy(table),
        slot_mapping_device=torch.from_numpy(slots),
    )


@dataclass(frozen=True, slots=True)
class Build:
    """One build of the native module."""

    name: str
    module: ModuleType

    def use(self) -> None:
        native.load = lambda: self.module  # type: ignore[assignment]


def load_build(text: str) -> Build:
    """`name=path` of a compiled module."""
    name, _, path = text.partition("=")
    loader = ExtensionFileLoader(f"{name}._C", path)
    spec = importlib.util.spec_from_file_location(f"{name}._C", path, loader=loader)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Build(name, module)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(slots=True)
class Times:
    """Seconds of each run."""

    wall: list[float]
    cpu: list[float]

    def judged(self, threads: int) -> list[float]:
        return self.cpu if threads == 1 else self.wall

    def add(self, run: Callable[[], object]) -> None:
        cpu, wall = cpu_seconds(), time.perf_counter()
        run()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(cpu_seconds() - cpu)


class Ceiling:
    """The machine's read bandwidth: one sum over memory larger than any cache."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._memory = torch.empty(CEILING_BYTES // 4, dtype=torch.float32)
        native.load().advise_huge_pages(self._memory.data_ptr(), CEILING_BYTES)
        self._memory.fill_(1.0)
        self.rates: list[float] = []

    def measure(self) -> None:
        times = Times([], [])
        for _ in range(3):
            times.add(lambda: self._memory.sum())
        seconds = min(times.judged(self._threads))
        self.rates.append(CEILING_BYTES / seconds / 1e9)


def measure(case: Case, builds: list[Build], seconds: float) -> dict[str, Times]:
    """At least MIN_RUNS runs of each build in turn, for about `seconds`."""
    scene = Scene(case)
    times = {build.name: Times([], []) for build in builds}
    outputs = []
    for build in builds:
        build.use()
        scene.run()
        outputs.append(scene.out.float())
    worst = max(float((out - outputs[0]).norm() / outputs[0].norm()) for out in outputs)
    assert worst < 1e-2, f"builds differ by {worst}"
    start, rounds = time.perf_counter(), 0
    while rounds < MIN_RUNS or time.perf_counter() - start < seconds:
        rounds += 1
        for build in builds:
            build.use()
            times[build.name].add(scene.run)
    return times


def _per_layer_ms(seconds: list[float], case: Case) -> list[float]:
    return [1e3 * s / case.num_layers for s in seconds]


def row(case: Case, build: str, times: Times, threads: int, ceiling: float) -> Row:
    work = case.kv_bytes if case.is_decode else case.flops
    judged = record.spread(_per_layer_ms(times.judged(threads), case))
    best = work / judged.lowest / 1e6
    return Row(
        case=str(case),
        build=build,
        num_layers=case.num_layers,
        wall_ms=record.spread(_per_layer_ms(times.wall, case)),
        cpu_ms=record.spread(_per_layer_ms(times.cpu, case)),
        best_rate=round(best, 2),
        median_rate=round(work / judged.median / 1e6, 2),
        share_of_read_bandwidth=round(best / ceiling, 3) if case.is_decode else None,
    )


def show(row: Row) -> str:
    unit = "GFLOP/s" if row.share_of_read_bandwidth is None else "GB/s"
    share = row.share_of_read_bandwidth
    of_peak = "" if share is None else f" = {share:.0%} of read bandwidth"
    wall, cpu = row.wall_ms, row.cpu_ms
    return (
        f"{row.case:48} {row.build:8} cpu {cpu.lowest:9.3f} ms (median {cpu.median:.3f}), wall "
        f"{wall.lowest:.3f} ({wall.median:.3f}): {row.best_rate:7.2f} {unit}{of_peak}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--kv", default="auto,int8", help="caches: auto (bfloat16), int8")
    parser.add_argument("--build", action="append", default=[], help="NAME=PATH of another build")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "cpu_attention.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hal.kernels.register_all()
    builds = [*map(load_build, options.build), Build("current", native.load())]
    header, ceiling = record.header("cpu_attention"), Ceiling(options.threads)
    measured = []
    for case in (case for kv in options.kv.split(",") for case in cases(kv)):
        if options.only in str(case):
            ceiling.measure()
            measured.append((case, measure(case, builds, options.seconds)))
    ceiling.measure()
    best = max(ceiling.rates)
    rows = [
        row(case, name, t, options.threads, best)
        for case, times in measured
        for name, t in times.items()
    ]
    report = {
        **header,
        "threads": options.threads,
        "block_size": BLOCK_SIZE,
        "load_1min_at_end": os.getloadavg()[0],
        "read_gb_per_s": asdict(record.spread(ceiling.rates)),
        "rows": [asdict(r) for r in rows],
    }
    record.write(options.out, report)
    sys.stdout.write(f"read bandwidth {best:.1f} GB/s with {options.threads} threads\n")
    sys.stdout.write("".join(show(r) + "\n" for r in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
