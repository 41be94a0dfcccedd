"""attention over the paged cache in place: decodes split over keys, prefills over queries."""

from __future__ import annotations

from typing import Any

import torch

from hal.binding import Binder
from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels.reference.attention import PagedAttention, needs_plain_cache
from hal.kernels.reference.tensors import as_torch
from hal.kernels.triton.predicates import PREFERENCE, needs_float, unavailable
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.kernels.triton.work_list import Int32, Tiling, make_work_list
from hal.kv import KV_SCALE_BYTES
from hal.opset import attention
from hal.opset.attention import AttentionMeta, AttentionProblem
from hal.select import Regime
from hal.tensor import Tensor

_ATTEND = Program("attention", "attend")
_MERGE = Program("attention", "merge_partials")
_WRITE = Program("attention", "write_kv")
_WRITE_CODES = Program("attention", "write_codes")
_LARGEST_HEAD = 256
_LARGEST_GROUP = 64
# Programs for each compute unit that decodes are split into where they are few.
_PROGRAMS_PER_UNIT = 8
_LEAST_DIMS = 16  # of a matrix instruction


def rejects_attention(caps: Capabilities, problem: AttentionProblem) -> str | None:
    group = problem.num_heads // problem.num_kv_heads
    if problem.head_dim > _LARGEST_HEAD:
        return f"keeps heads of up to {_LARGEST_HEAD} in registers; head_dim is {problem.head_dim}"
    if group > _LARGEST_GROUP:
        return f"packs up to {_LARGEST_GROUP} query heads of a kv head; the problem has {group}"
    if not problem.holds_codes and (reason := needs_plain_cache(caps, problem)):
        return reason
    return needs_float(caps, problem)


def _regimes(problem: AttentionProblem) -> tuple[Regime, ...]:
    group = problem.num_heads // problem.num_kv_heads
    few = max(1, 16 // group)
    return (
        Regime(1, few, "of a sequence: one tile of queries, its keys split"),
        Regime(few + 1, None, "of a sequence: tiles of queries, keys in order"),
    )


# Codes are rounded as hal.kv says: a product is rounded before anything is added to it.
CODE_OPTIONS = {"enable_fp_fusion": False}


def scales_of(cache: torch.Tensor) -> torch.Tensor:
    """The memory of a cache of codes, as its scales are read."""
    return cache.view(torch.bfloat16)


@attention.family(
    "triton",
    preference=PREFERENCE,
    rejects=rejects_attention,
    unavailable=unavailable,
    regimes=_regimes,
)
class TritonAttention(PagedAttention):
    """Keys and values lie as in the reference's cache: a head's elements side by side. Scales of
    codes lie behind all codes of a block, so that wide loads stay aligned.

    e4m3 is decoded from its bits to the problem's dtype, on archs whose own fp8 is FNUZ as well.
    Not batch-invariant: where keys are split depends on what else is decoded.
    """

    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._binder = binder
        caps = binder.selector.caps
        self._group = problem.num_heads // problem.num_kv_heads
        dims = max(_LEAST_DIMS, next_power_of_2(problem.head_dim))
        row_bits = dims * problem.dtype.bits * (2 if problem.holds_codes else 1)
        size = "large" if row_bits > 128 * 16 else "small"
        self._decode = self._launch(caps, f"decode_{size}", dims)
        self._prefill = self._launch(caps, f"prefill_{size}", dims)
        rows = self._decode["ROWS"]
        self._tiling = Tiling(
            decode_tokens=rows // self._group,
            prefill_tokens=self._prefill["ROWS"] // self._group,
            keys=self._decode["KEYS"],
            max_partials=max(64, caps.compute_units * _PROGRAMS_PER_UNIT // problem.num_kv_heads),
        )
        shape = (problem.num_kv_heads, rows, dims)
        num_rows = self._tiling.max_partials
        self._partial_out = binder.arena.buffer("partial_out", shape, DType.FLOAT32, num_rows)
        self._partial_stats = binder.arena.buffer(
            "partial_stats", (problem.num_kv_heads, 2, rows), DType.FLOAT32, num_rows
        )
        self._write = self._write_options(caps)
        self._merge = {
            **launch_options(caps, "merge_partials"),
            **self._named("HEAD_DIM", "KV_HEADS", "GROUP"),
            "ROWS": rows,
            "DIMS": dims,
        }

    @property
    def kv_layout(self) -> str:
        if not self.problem.holds_codes:
            return super().kv_layout
        return (
            "[num_blocks, 2 (keys, values), num_kv_heads, codes [block_size, head_dim] + scales "
            "[block_size]]"
        )

    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        p = self.problem
        if not p.holds_codes:
            return super().kv_shape(num_blocks)
        row_bytes = p.head_dim + KV_SCALE_BYTES
        return (num_blocks, 2, p.num_kv_heads, p.block_size * row_bytes)

    def _write_options(self, caps: Capabilities) -> dict[str, Any]:
        p = self.problem
        shared = {**self._named("HEAD_DIM", "KV_HEADS", "BLOCK_SIZE"), "HEADS": p.num_heads}
        if not p.holds_codes:
            return {**launch_options(caps, "write_kv"), **shared}
        options = launch_options(caps, "write_codes")
        return {
            **options,
            **shared,
            **CODE_OPTIONS,
            "IS_FP8": p.kv_dtype is DType.FLOAT8_E4M3FN,
            "DIMS": next_power_of_2(p.head_dim),
            "HEADS_BLOCK": min(options["HEADS_BLOCK"], next_power_of_2(p.num_kv_heads)),
        }

    def _named(self, *names: str) -> dict[str, int]:
        p = self.problem
        values = {
            "HEAD_DIM": p.head_dim,
            "KV_HEADS": p.num_kv_heads,
            "GROUP": self._group,
            "BLOCK_SIZE": p.block_size,
        }
        return {name: values[name] for name in names}

    def _launch(self, caps: Capabilities, shape_class: str, dims: int) -> dict[str, Any]:
        spec = self.problem.spec
        options = launch_options(caps, "attention", shape_class)
        return {
            **options,
            **self._named("HEAD_DIM", "KV_HEADS", "GROUP", "BLOCK_SIZE"),
            "ROWS": max(options["ROWS"], next_power_of_2(self._group)),
            "DIMS": dims,
            "WINDOW": spec.window or 0,
            "SOFTCAP": spec.softcap or 0.0,
            "IS_FP8": self.problem.kv_dtype is DType.FLOAT8_E4M3FN,
        }

    def plan(self, meta: AttentionMeta) -> None:
        self._meta = meta
        work = make_work_list(
            meta.cu_seqlens_q, meta.seq_lens, self.problem.spec.window, self._tiling
        )
        self._work = [
            (self._upload(items), options)
            for items, options in ((work.decode, self._decode), (work.prefill, self._prefill))
            if len(items)
        ]
        self._splits = self._upload(work.splits)

    @property
    def slots(self) -> torch.Tensor:
        """Of the planned step's tokens."""
        return as_torch(self._meta.slot_mapping_device)

    def _upload(self, items: Int32) -> torch.Tensor:
        return as_torch(self._binder.device.upload(items))

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        p, cache, num_tokens = self.problem, as_torch(kv), self._meta.num_tokens
        if p.holds_codes:
            grid = (num_tokens, 2, -(-p.num_kv_heads // self._write["HEADS_BLOCK"]))
            both = (cache, scales_of(cache))
            _WRITE_CODES.launch(grid, as_torch(qkv), *both, self.slots, **self._write)
            return
        grid = (num_tokens, 2, -(-p.num_kv_heads * p.head_dim // self._write["BLOCK"]))
        _WRITE.launch(grid, as_torch(qkv), cache, self.slots, **self._write)

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        meta, cache = self._meta, as_torch(kv)
        scales = scales_of(cache) if self.problem.holds_codes else None
        partials = tuple(
            as_torch(buffer.rows(self._tiling.max_partials))
            for buffer in (self._partial_out, self._partial_stats)
        )
        table, starts = as_torch(meta.block_table_device), as_torch(meta.cu_seqlens_q_device)
        for items, options in self._work:
            _ATTEND.launch(
                (len(items), self.problem.num_kv_heads),
                as_torch(qkv),
                cache,
                scales,
                as_torch(out),
                *partials,
                items,
                table,
                starts,
                as_torch(meta.seq_lens_device),
                table.stride(0),
                self.problem.spec.scale,
                **options,
            )
        if len(self._splits):
            grid = (len(self._splits), self.problem.num_kv_heads)
            _MERGE.launch(grid, *partials, as_torch(out), self._splits, starts, **self._merge)
