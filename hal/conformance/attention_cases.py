"""attention: every geometry a scheduler makes, over caches full of traps.

Codes of a quantised cache are whole numbers that hal.kv.KVSpec defines to the last bit, so the
oracle takes them as that says, in float32 numpy; everything after is float64 over what they mean,
and meets the limits of its dtype with no room for a code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hal.conformance import oracle
from hal.conformance.case import Case, Check, equal, guarded
from hal.conformance.limits import LIMITS
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.stage import Float64, Stage
from hal.dtypes import DType
from hal.kv import KV_FORMATS
from hal.opset.attention import AttentionFamily, AttentionProblem, AttentionSpec
from hal.select import Kernel
from hal.tensor import Tensor

Steps = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase(Case):
    """steps: (q_len, seq_len) of each sequence. The context comes from an earlier step."""

    problem: AttentionProblem
    steps: Steps

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        run = _Run(self, stage, stage.bind(kernel, self.problem))
        run.write_context()
        yield run.write_step()
        run.cache.move_blocks()
        run.poison_unseen()
        # Twice with one plan, as the layers of a model do, over two caches.
        together = run.attend(range(len(self.steps)))
        yield self.close("out", together, run.expected())
        yield equal("out again", run.attend_planned(range(len(self.steps))), together)
        yield run.guard_check
        if kernel.traits.is_batch_invariant(self.problem):
            yield equal("batch-invariant, one by one", run.attend_one_by_one(), together)
            yield equal("batch-invariant, last tokens", run.attend_last(), run.last_of(together))


class _Run:
    """One case under way: random tokens per sequence, and the cache that holds them."""

    def __init__(self, case: AttentionCase, stage: Stage, family: AttentionFamily) -> None:
        self.stage, self.family, self.problem = stage, family, case.problem
        self.steps = [SequenceStep(q_len, seq_len) for q_len, seq_len in case.steps]
        p = case.problem
        self.qkv = [stage.normal((s.seq_len, p.qkv_width), p.dtype).host for s in self.steps]
        self.cache = PagedCache(stage, family, p, [s.seq_len for s in self.steps])
        self.guard_check = Check("writes behind out", 0.0, 0.0)

    def write_context(self) -> None:
        """The tokens before this step, in a step of their own."""
        seqs = [i for i, s in enumerate(self.steps) if s.seq_len > s.q_len]
        if seqs:
            lens = [self.steps[i].seq_len - self.steps[i].q_len for i in seqs]
            self.cache.plan([SequenceStep(n, n) for n in lens], seqs)
            rows = [self.qkv[i][:n] for i, n in zip(seqs, lens, strict=True)]
            self.family.write_kv(self._place(np.concatenate(rows)), self.cache.kv)

    def write_step(self) -> Check:
        """The new tokens; exactly their slots may change."""
        self.cache.plan(self.steps, list(range(len(self.steps))))
        rows = self._place(self._new_rows(range(len(self.steps))))
        changed = self._changed_by(rows, self.cache.kv)
        p = self.problem
        row_bytes = p.head_dim
        if p.holds_codes:
            # A code may be the one that was there, but not also the one that is elsewhere.
            changed |= self._changed_by(rows, self.cache.blank())
            row_bytes += 2
        wanted = sum(s.q_len for s in self.steps) * 2 * p.num_kv_heads * row_bytes
        written = int(np.count_nonzero(changed))
        return Check("elements of the cache written", float(abs(written - wanted)), 0.0)

    def _changed_by(self, rows: Tensor, kv: Tensor) -> NDArray[np.bool_]:
        before = self.stage.read(kv)
        self.family.write_kv(rows, kv)
        after = self.stage.read(kv)
        return np.asarray(~((before == after) | (np.isnan(before) & np.isnan(after))))

    def poison_unseen(self) -> None:
        """Blocks behind the window of a sequence's first new token may have been freed."""
        window = self.problem.spec.window
        if window is not None:
            for i, s in enumerate(self.steps):
                first_seen = s.seq_len - s.q_len - window + 1
                self.cache.poison_before(i, max(0, first_seen))

    def attend(self, seqs: range) -> Float64:
        """Plan these sequences' steps and attend."""
        self.cache.plan([self.steps[i] for i in seqs], list(seqs))
        return self.attend_planned(seqs)

    def attend_planned(self, seqs: range) -> Float64:
        return self._attend(self._new_rows(seqs))

    def attend_one_by_one(self) -> Float64:
        every = [self.attend(range(i, i + 1)) for i in range(len(self.steps))]
        return np.concatenate(every)

    def attend_last(self) -> Float64:
        """Only the last token of each sequence, as if the others had come in an earlier chunk."""
        seqs = list(range(len(self.steps)))
        self.cache.plan([SequenceStep(1, s.seq_len) for s in self.steps], seqs)
        return self._attend(np.concatenate([rows[-1:] for rows in self.qkv]))

    def last_of(self, out: Float64) -> Float64:
        """The rows of every sequence's last token."""
        return np.asarray(out[np.cumsum([s.q_len for s in self.steps]) - 1])

    def expected(self) -> Float64:
        p = self.problem
        results = []
        for rows, s in zip(self.qkv, self.steps, strict=True):
            heads = rows.reshape(s.seq_len, -1, p.head_dim)
            q = heads[s.seq_len - s.q_len :, : p.num_heads]
            k = heads[:, p.num_heads : p.num_heads + p.num_kv_heads]
            v = heads[:, p.num_heads + p.num_kv_heads :]
            if p.holds_codes:
                k, v = stored_codes(k, p.kv_dtype), stored_codes(v, p.kv_dtype)
            results.append(oracle.attend(q, k, v, p.spec).reshape(s.q_len, -1))
        return np.concatenate(results)

    def _attend(self, rows: Float64) -> Float64:
        """Keys and values of `qkv` are poison here: they must come from the cache."""
        p = self.problem
        queries = rows.copy()
        queries[:, p.num_heads * p.head_dim :] = np.nan
        out = guarded(self.stage, (len(rows), p.num_heads * p.head_dim), p.dtype)
        self.family.attend(self._place(queries), self.cache.kv, out.out)
        self.guard_check = out.check(self.stage)
        return out.read(self.stage)

    def _new_rows(self, seqs: range) -> Float64:
        return np.concatenate([self.qkv[i][-self.steps[i].q_len :] for i in seqs])

    def _place(self, rows: Float64) -> Tensor:
        return self.stage.place(rows, self.problem.dtype).device


_PREFILL: Steps = ((7, 7), (33, 33), (1, 1))
_DECODE: Steps = ((1, 1), (1, 40), (1, 17), (1, 8), (1, 9))
_CHUNKS: Steps = ((9, 40), (16, 32), (1, 50))
_MIXED: Steps = ((1, 33), (12, 12), (5, 21), (1, 2), (3, 3))
_SPECULATED: Steps = ((4, 40), (2, 9), (3, 64))
_APART: Steps = ((1, 3), (1, 300), (1, 5), (1, 290))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One line of the table below; defaults are an ordinary small GQA model."""

    name: str
    steps: Steps = _MIXED
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None


_TABLE = (
    _Row(name="prefill", steps=_PREFILL),
    _Row(name="decode", steps=_DECODE),
    _Row(name="chunks", steps=_CHUNKS),
    _Row(name="mixed"),
    _Row(name="speculated", steps=_SPECULATED),
    _Row(name="lengths-apart", steps=_APART),
    _Row(name="mha", num_kv_heads=4),
    _Row(name="mqa", num_heads=8, num_kv_heads=1),
    _Row(name="groups-of-4", num_heads=8, num_kv_heads=2),
    _Row(name="groups-of-3", num_heads=6, num_kv_heads=2),
    _Row(name="one-head", num_heads=1, num_kv_heads=1),
    _Row(name="dim-16", head_dim=16),
    _Row(name="dim-80", head_dim=80),
    _Row(name="dim-96", head_dim=96),
    _Row(name="dim-128", head_dim=128),
    _Row(name="dim-256", head_dim=256),
    _Row(name="block-8", block_size=8),
    _Row(name="block-32", block_size=32),
    _Row(name="block-8-decode", block_size=8, steps=_DECODE),
    _Row(name="window-8", window=8),
    _Row(name="window-8-decode", window=8, steps=_DECODE),
    _Row(name="window-16-chunks", window=16, steps=_CHUNKS, block_size=8),
    _Row(name="window-1", window=1, steps=_SPECULATED),
    _Row(name="window-beyond", window=4096),
    _Row(name="softcap", softcap=2.0),
    _Row(name="softcap-window-decode", softcap=2.0, window=8, steps=_DECODE),
    _Row(name="scale", scale=0.3),
)


# fp8 differs from int8 in its codes alone.
_TABLE_OF_FP8 = tuple(
    row for row in _TABLE if row.name in ("mixed", "lengths-apart", "dim-80", "window-8", "block-8")
)
_KV_NAMES = {dtype: name for name, dtype in KV_FORMATS.items()}


def stored_codes(x: Float64, format: DType) -> Float64:
    """What a cache of codes holds of x [..., head_dim], row by row."""
    result = np.empty_like(x)
    top = 127 if format is DType.INT8 else 448
    for index in np.ndindex(x.shape[:-1]):
        row = x[index].astype(np.float32)
        exact = torch.tensor(abs(row).max() / np.float32(top))
        scale = np.float32(exact.bfloat16().item())
        wanted = (row * (np.float32(1) / scale)).clip(-top, top)
        codes = np.rint(wanted) if format is DType.INT8 else nearest_e4m3(wanted)
        result[index] = codes.astype(np.float64) * scale
    return result


def nearest_e4m3(x: NDArray[np.float32]) -> Float64:
    """By the steps between neighbours: 8 of them up to each power of two, from 2 ** -6 upwards."""
    exponent = np.maximum(np.floor(np.log2(np.maximum(abs(x), 2.0**-6))), -6)
    step = 2.0 ** (exponent - 3)
    return np.asarray(np.rint(x.astype(np.float64) / step) * step)


def attention_cases() -> Iterator[AttentionCase]:
    for dtype in LIMITS:
        for row in _TABLE:
            yield _case(row, dtype, None)
            yield _case(row, dtype, DType.INT8)
        for row in _TABLE_OF_FP8:
            yield _case(row, dtype, DType.FLOAT8_E4M3FN)


def _case(row: _Row, dtype: DType, kv_dtype: DType | None) -> AttentionCase:
    scale = row.head_dim**-0.5 if row.scale is None else row.scale
    problem = AttentionProblem(
        num_heads=row.num_heads,
        num_kv_heads=row.num_kv_heads,
        head_dim=row.head_dim,
        dtype=dtype,
        block_size=row.block_size,
        spec=AttentionSpec(scale=scale, window=row.window, softcap=row.softcap, kv_dtype=kv_dtype),
    )
    name = row.name if kv_dtype is None else f"{row.name}-kv-{_KV_NAMES[kv_dtype]}"
    return AttentionCase(op="attention", name=name, problem=problem, dtype=dtype, steps=row.steps)
