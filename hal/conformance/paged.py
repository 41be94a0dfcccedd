"""A paged cache as an engine leaves it: permuted blocks, poison in every slot that nobody owns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.conformance.stage import Stage
from hal.opset.attention import AttentionFamily, AttentionMeta, AttentionProblem
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One sequence's step: q_len new tokens at the end of a context of seq_len."""

    q_len: int
    seq_len: int


class PagedCache:
    """Block tables of some sequences over one layer's cache, filled through the family alone.

    The cache starts full of NaN. Table entries behind a sequence's last block name a block of
    NaN, as a freed block may hold anything.
    """

    def __init__(
        self, stage: Stage, family: AttentionFamily, p: AttentionProblem, seq_lens: list[int]
    ) -> None:
        self._stage, self._family, self._block_size = stage, family, p.block_size
        num_blocks = [-(-n // p.block_size) for n in seq_lens]
        # As many blocks again for copies, and one of poison that is never written.
        self.total_blocks = 2 * sum(num_blocks) + 1
        free = [int(b) for b in stage.rng.permutation(self.total_blocks)]
        self.poison_block = free.pop()
        self.tables = [[free.pop() for _ in range(n)] for n in num_blocks]
        self._free = free
        self._shape, self._dtype = family.kv_shape(self.total_blocks), p.kv_storage
        self.kv = stage.poisoned(self._shape, self._dtype)

    def blank(self) -> Tensor:
        """A cache of the same shape, full of zeros."""
        return self._stage.place(np.zeros(self._shape), self._dtype).device

    def plan(self, steps: list[SequenceStep], seqs: list[int]) -> None:
        """Plan a step of these sequences."""
        self._family.plan(self._meta(steps, seqs))

    def move_blocks(self) -> None:
        """Copy every sequence's blocks elsewhere, half of them by way of the host, and poison the
        old ones."""
        pairs = []
        for table in self.tables:
            for index, old in enumerate(table):
                table[index] = self._free.pop()
                pairs.append((old, table[index]))
        self._swap(pairs[::2])
        self._copy(pairs[1::2])
        self._copy([(self.poison_block, old) for old, _ in pairs])

    def poison_before(self, seq: int, position: int) -> None:
        """Poison the blocks that lie wholly before `position`, as if they were freed."""
        gone = self.tables[seq][: position // self._block_size]
        self._copy([(self.poison_block, block) for block in gone])

    def _copy(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            self._family.copy_blocks(self.kv, self.kv, np.array(pairs, dtype=np.int32))

    def _swap(self, pairs: list[tuple[int, int]]) -> None:
        family, device, places = self._family, self._stage.device, range(len(pairs))
        host = device.empty_host(family.kv_shape(len(pairs)), self._dtype)
        outs = [(old, place) for place, (old, _) in zip(places, pairs, strict=True)]
        ins = [(place, new) for place, (_, new) in zip(places, pairs, strict=True)]
        family.copy_blocks(self.kv, host, np.array(outs, dtype=np.int32))
        family.copy_blocks(host, self.kv, np.array(ins, dtype=np.int32))

    def _meta(self, steps: list[SequenceStep], seqs: list[int]) -> AttentionMeta:
        width = max(-(-s.seq_len // self._block_size) for s in steps) + 1
        table = np.full((len(seqs), width), self.poison_block, dtype=np.int32)
        slots = []
        for row, (seq, step) in enumerate(zip(seqs, steps, strict=True)):
            used = self.tables[seq][: -(-step.seq_len // self._block_size)]
            table[row, : len(used)] = used
            positions = np.arange(step.seq_len - step.q_len, step.seq_len)
            blocks = np.array(self.tables[seq], dtype=np.int64)[positions // self._block_size]
            slots.append(blocks * self._block_size + positions % self._block_size)
        return self._with_device_copies(
            np.cumsum([0, *(s.q_len for s in steps)]).astype(np.int32),
            np.array([s.seq_len for s in steps], dtype=np.int32),
            table,
            np.concatenate(slots),
        )

    def _with_device_copies(
        self,
        cu_seqlens_q: NDArray[np.int32],
        seq_lens: NDArray[np.int32],
        table: NDArray[np.int32],
        slots: NDArray[np.int64],
    ) -> AttentionMeta:
        upload = self._stage.indices
        return AttentionMeta(
            cu_seqlens_q=cu_seqlens_q,
            seq_lens=seq_lens,
            block_table=table,
            slot_mapping=slots,
            cu_seqlens_q_device=upload(cu_seqlens_q),
            seq_lens_device=upload(seq_lens),
            block_table_device=upload(table),
            slot_mapping_device=upload(slots),
        )
