"""attention by scaled_dot_product_attention over keys and values gathered from their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hal.device import Capabilities
from hal.kernels.reference.attention import (
    PagedAttention,
    first_visible,
    needs_plain_cache,
    visible_keys,
)
from hal.kernels.reference.tensors import as_torch
from hal.kernels.torch_native.predicates import UPCAST_COST, needs_fast_product, product_level
from hal.opset import attention
from hal.opset.attention import AttentionMeta, AttentionProblem
from hal.select import Regime
from hal.tensor import Tensor

# Rows of head_dim that one group gathers: bounds the copies of keys and values (32 MiB each at
# head_dim 128 in 16 bits) unless a single sequence is longer.
_MAX_GROUP_ROWS = 1 << 17


def _rejects(caps: Capabilities, problem: AttentionProblem) -> str | None:
    if problem.spec.softcap is not None:
        return f"scaled_dot_product_attention has no softcap; softcap is {problem.spec.softcap:g}"
    return needs_plain_cache(caps, problem) or needs_fast_product(caps, problem)


def _regimes(_problem: AttentionProblem) -> tuple[Regime, ...]:
    return (
        Regime(1, 1, "of a sequence: decodes of similar length in one call, contexts gathered"),
        Regime(2, None, "of a sequence: one call for each, its context gathered"),
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences that one call attends: several of one new token each, or one of several tokens.

    tokens    rows of the step's tokens
    key_rows  [num_seqs, num_kv_heads, num_keys] rows of the cache seen as [-1, head_dim]
    mask      which keys are seen, broadcast to [num_seqs, heads, q_len, num_keys]; None: all, or
              causally where is_causal
    """

    tokens: torch.Tensor
    key_rows: torch.Tensor
    mask: torch.Tensor | None
    is_decode: bool

    @property
    def is_causal(self) -> bool:
        return not self.is_decode and self.mask is None


@attention.family(
    "sdpa",
    preference=50,
    level=product_level,
    cost=UPCAST_COST,
    regimes=_regimes,
    rejects=_rejects,
)
class SdpaAttention(PagedAttention):
    """plan() groups the sequences and lists which cache rows to gather, once for all layers.

    Only slots that some query sees are read: what lies behind a window or a sequence is never
    multiplied, not even with zero.
    """

    def plan(self, meta: AttentionMeta) -> None:
        super().plan(meta)
        self._device = as_torch(meta.slot_mapping_device).device
        q_lens = np.diff(meta.cu_seqlens_q)
        self._groups = [self._decode_group(meta, seqs) for seqs in self._decodes(meta, q_lens)]
        self._groups += [self._prefill_group(meta, int(s)) for s in np.flatnonzero(q_lens > 1)]

    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        queries = as_torch(qkv)[:, : self._q_width]
        rows = as_torch(kv).view(-1, self.problem.head_dim)
        for group in self._groups:
            result = self._attend_group(queries.index_select(0, group.tokens), rows, group)
            as_torch(out).index_copy_(0, group.tokens, result)

    def _attend_group(
        self, queries: torch.Tensor, rows: torch.Tensor, group: _Group
    ) -> torch.Tensor:
        """queries [num_tokens of the group, num_heads * head_dim]; the result likewise."""
        p = self.problem
        keys, values = self._gather(rows, group.key_rows)
        if group.is_decode:
            # One new token: the query heads of a group stand where its new tokens would.
            q = queries.view(len(queries), p.num_kv_heads, -1, p.head_dim)
        else:
            q = queries.view(1, len(queries), p.num_heads, p.head_dim).transpose(1, 2)
        result = functional.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=group.mask,
            is_causal=group.is_causal,
            scale=p.spec.scale,
            enable_gqa=not group.is_decode and p.num_heads != p.num_kv_heads,
        )
        return (result if group.is_decode else result.transpose(1, 2)).reshape(queries.shape)

    def _gather(
        self, rows: torch.Tensor, key_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [num_seqs, num_kv_heads, num_keys, head_dim]."""
        shape = (*key_rows.shape, self.problem.head_dim)
        values_rows = key_rows + self.problem.num_kv_heads * self.problem.block_size
        return (
            rows.index_select(0, key_rows.flatten()).view(shape),
            rows.index_select(0, values_rows.flatten()).view(shape),
        )

    def _decodes(self, meta: AttentionMeta, q_lens: NDArray[np.int32]) -> Iterator[list[int]]:
        """Sequences of one new token, shortest first, cut where padding or size would grow."""
        seqs = np.flatnonzero(q_lens == 1)
        group: list[int] = []
        for seq in seqs[np.argsort(meta.seq_lens[seqs], kind="stable")].tolist():
            num_keys = int(meta.seq_lens[seq])
            if group and (
                num_keys > 2 * int(meta.seq_lens[group[0]]) + 128
                or num_keys * self.problem.num_kv_heads * (len(group) + 1) > _MAX_GROUP_ROWS
            ):
                yield group
                group = []
            group.append(seq)
        if group:
            yield group

    def _decode_group(self, meta: AttentionMeta, seqs: Sequence[int]) -> _Group:
        lens = meta.seq_lens[seqs].astype(np.int64)
        first = np.array([first_visible(int(n) - 1, self.problem.spec.window) for n in lens])
        positions = first[:, None] + np.arange(int((lens - first).max()))
        is_padding = positions >= lens[:, None]
        # Padding reads the sequence's own last token, which is written before anyone reads.
        positions = np.minimum(positions, lens[:, None] - 1)
        mask = None
        if is_padding.any():
            mask = self._upload(~is_padding).view(len(lens), 1, 1, -1)
        tokens = meta.cu_seqlens_q[seqs].astype(np.int64)
        return _Group(
            self._upload(tokens), self._key_rows(meta, seqs, positions), mask, is_decode=True
        )

    def _prefill_group(self, meta: AttentionMeta, seq: int) -> _Group:
        start, end = meta.cu_seqlens_q[seq : seq + 2].tolist()
        q_len, seq_len = end - start, int(meta.seq_lens[seq])
        window = self.problem.spec.window
        first = first_visible(seq_len - q_len, window)
        positions = np.arange(first, seq_len)[None]
        mask = None
        if q_len < seq_len or first > 0 or window is not None:
            visible = visible_keys(q_len, seq_len, window, self._device)
            mask = visible[:, first:]
        tokens = torch.arange(start, end, device=self._device)
        return _Group(tokens, self._key_rows(meta, [seq], positions), mask, is_decode=False)

    def _key_rows(
        self, meta: AttentionMeta, seqs: Sequence[int], positions: NDArray[np.int64]
    ) -> torch.Tensor:
        """Cache rows [num_seqs, num_kv_heads, num_keys] of positions [num_seqs, num_keys]."""
        p = self.problem
        table = meta.block_table[seqs].astype(np.int64)
        blocks = np.take_along_axis(table, positions // p.block_size, axis=1)
        first_head = 2 * blocks * p.num_kv_heads * p.block_size + positions % p.block_size
        heads = np.arange(p.num_kv_heads) * p.block_size
        return self._upload(first_head[:, None, :] + heads[None, :, None])

    def _upload(self, host: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(host).to(self._device)
