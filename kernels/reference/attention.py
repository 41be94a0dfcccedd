"""attention: one sequence at a time, its keys and values gathered through the block table."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hal.binding import Binder
from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels.reference.kv_codes import from_codes, to_codes
from hal.kernels.reference.tensors import as_torch, widen
from hal.kv import KV_SCALE_BYTES
from hal.opset import attention
from hal.opset.attention import AttentionFamily, AttentionMeta, AttentionProblem
from hal.select import Level
from hal.tensor import Tensor


def needs_plain_cache(_caps: Capabilities, problem: AttentionProblem) -> str | None:
    """For families whose cache holds keys and values in the model's dtype."""
    if problem.kv_dtype is problem.dtype:
        return None
    return f"keeps keys and values in {problem.dtype}; the problem asks for {problem.kv_dtype}"


def needs_codes(_caps: Capabilities, problem: AttentionProblem) -> str | None:
    """For families whose cache holds codes under scales."""
    if problem.holds_codes:
        return None
    return f"keeps keys and values as codes; the problem keeps them in {problem.kv_dtype}"


def needs_int8(_caps: Capabilities, problem: AttentionProblem) -> str | None:
    """For families that multiply whole numbers."""
    if problem.kv_dtype is DType.INT8:
        return None
    return f"keeps keys and values as int8; the problem keeps them in {problem.kv_dtype}"


class PagedAttention(AttentionFamily):
    """The cache as [num_blocks, 2, num_kv_heads, block_size, head_dim]; subclasses attend."""

    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        q_width = problem.num_heads * problem.head_dim
        kv_width = problem.num_kv_heads * problem.head_dim
        self._q_width = q_width
        self._sides = (slice(q_width, q_width + kv_width), slice(q_width + kv_width, None))

    @property
    def kv_layout(self) -> str:
        return "[num_blocks, 2 (keys, values), num_kv_heads, block_size, head_dim]"

    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        p = self.problem
        return (num_blocks, 2, p.num_kv_heads, p.block_size, p.head_dim)

    def plan(self, meta: AttentionMeta) -> None:
        slots = as_torch(meta.slot_mapping_device)
        self._meta = meta
        self._write_blocks = slots // self.problem.block_size
        self._write_offsets = slots % self.problem.block_size

    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        cache = as_torch(kv)
        shape = (-1, self.problem.num_kv_heads, self.problem.head_dim)
        for side, columns in enumerate(self._sides):
            by_slot = cache[:, side].transpose(1, 2)  # [num_blocks, block_size, heads, head_dim]
            rows = as_torch(qkv)[:, columns].view(shape)
            by_slot[self._write_blocks, self._write_offsets] = self._stored(rows)

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [T, num_kv_heads, head_dim] as the cache holds them."""
        return rows

    def copy_blocks(self, kv: Tensor, out: Tensor, pairs: NDArray[np.int32]) -> None:
        copy_blocks(as_torch(kv), as_torch(out), pairs)


def copy_blocks(cache: torch.Tensor, out: torch.Tensor, pairs: NDArray[np.int32]) -> None:
    """As AttentionFamily.copy_blocks, for any layout whose first dimension is the block."""
    if out is not cache:
        _copy_runs(cache, out, pairs)
        return
    index = torch.from_numpy(pairs.astype(np.int64)).to(cache.device)
    cache[index[:, 1]] = cache[index[:, 0]]


def _copy_runs(cache: torch.Tensor, out: torch.Tensor, pairs: NDArray[np.int32]) -> None:
    """Between two memories: neighbours in both go in one copy, and nothing is gathered first."""
    pairs = pairs[np.argsort(pairs[:, 0])]
    is_first = np.diff(pairs, axis=0, prepend=-2) != 1
    for run in np.split(pairs, np.flatnonzero(is_first.any(axis=1))[1:]):
        source, destination = run[0].tolist()
        target = out[destination : destination + len(run)]
        target.copy_(cache[source : source + len(run)], non_blocking=True)


_COST = "gathers and widens every context, one sequence after another, full score matrices"


@attention.family(
    "reference",
    preference=0,
    level=Level.REFERENCE,
    cost=_COST,
    rejects=needs_plain_cache,
)
class ReferenceAttention(PagedAttention):
    """Full score matrices in float32.

    Not batch-invariant: a chunk's sums have the length of its context, masked entries included.
    """

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        queries = as_torch(qkv)[:, : self._q_width]
        starts = self._meta.cu_seqlens_q
        for seq in range(self._meta.num_seqs):
            rows = slice(int(starts[seq]), int(starts[seq + 1]))
            as_torch(out)[rows] = self._attend_one(queries[rows], as_torch(kv), seq)

    def _attend_one(self, queries: torch.Tensor, cache: torch.Tensor, seq: int) -> torch.Tensor:
        """queries [q_len, num_heads * head_dim], the last tokens of the sequence's context."""
        p = self.problem
        seq_len = int(self._meta.seq_lens[seq])
        first = first_visible(seq_len - len(queries), p.spec.window)
        # [kv_heads, group, q_len, head_dim] against [kv_heads, 1, num_keys, head_dim]
        q = widen(queries).view(len(queries), p.num_kv_heads, -1, p.head_dim).permute(1, 2, 0, 3)
        keys, values = self._gather(cache, seq, slice(first, seq_len))
        scores = q @ keys.unsqueeze(1).transpose(2, 3) * p.spec.scale
        if p.spec.softcap is not None:
            scores = p.spec.softcap * torch.tanh(scores / p.spec.softcap)
        is_seen = visible_keys(len(queries), seq_len, p.spec.window, cache.device)[:, first:]
        weights = scores.masked_fill(~is_seen, float("-inf")).softmax(dim=-1)
        return (weights @ values.unsqueeze(1)).permute(2, 0, 1, 3).reshape(queries.shape)

    def _gather(
        self, cache: torch.Tensor, seq: int, positions: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [num_kv_heads, num_keys, head_dim] of these positions, no others."""
        num_blocks = -(-positions.stop // self.problem.block_size)
        blocks = as_torch(self._meta.block_table_device)[seq, :num_blocks]
        stored = cache.index_select(0, blocks)  # [n, 2, kv_heads, block_size, head_dim]
        rows = self._widened(stored.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, positions])
        return rows[0], rows[1]

    def _widened(self, stored: torch.Tensor) -> torch.Tensor:
        """Rows [..., head_dim] of the cache in float32."""
        return widen(stored)


@attention.family(
    "reference_quantized",
    preference=0,
    level=Level.REFERENCE,
    cost=_COST,
    rejects=needs_codes,
)
class ReferenceQuantizedAttention(ReferenceAttention):
    """The same on codes, each head's scale right behind them."""

    @property
    def kv_layout(self) -> str:
        return "[num_blocks, 2 (keys, values), num_kv_heads, block_size, head_dim codes + scale]"

    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        *rows, head_dim = super().kv_shape(num_blocks)
        return (*rows, head_dim + KV_SCALE_BYTES)

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        return to_codes(rows, self.problem.kv_dtype)

    def _widened(self, stored: torch.Tensor) -> torch.Tensor:
        return from_codes(stored, self.problem.kv_dtype)


def first_visible(context_before: int, window: int | None) -> int:
    """The first position that a token with `context_before` tokens before it sees."""
    return 0 if window is None else max(0, context_before + 1 - window)


def visible_keys(
    q_len: int, seq_len: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """[q_len, seq_len] bool: which keys each of the last q_len tokens of a context sees."""
    query = torch.arange(seq_len - q_len, seq_len, device=device).unsqueeze(1)
    key = torch.arange(seq_len, device=device)
    is_visible = key <= query
    return is_visible if window is None else is_visible & (key > query - window)
