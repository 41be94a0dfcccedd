"""What one step reads on the device: fresh tensors for any batch, fixed addresses for decodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.device import Device
from hal.dtypes import DType
from hal.engine.batch import Batch, Int32
from hal.engine.block_manager import NULL_BLOCK
from hal.opset.attention import AttentionMeta
from hal.tensor import Tensor

_ALIGNED_WORDS = 16  # 64 bytes: what vector loads and stores like best


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """T tokens, N rows of them to make logits of.

    token_ids, slots, positions [T]; sample_index [N], int32
    """

    token_ids: Tensor
    slots: Tensor
    positions: Tensor
    sample_index: Tensor
    meta: AttentionMeta

    @property
    def num_tokens(self) -> int:
        return self.meta.num_tokens

    @property
    def num_samples(self) -> int:
        return self.sample_index.shape[0]


def upload_inputs(device: Device, batch: Batch, tables: Int32, block_size: int) -> StepInputs:
    """Inputs of any batch. tables [max_num_seqs, max_blocks]: every slot's block table."""
    num_used = -(-int(batch.seq_lens.max()) // block_size)
    table = np.ascontiguousarray(tables[batch.slots][:, :num_used])
    rows = np.repeat(np.arange(batch.num_seqs), batch.q_lens)
    blocks = table[rows, batch.positions // block_size].astype(np.int64)
    slot_mapping = blocks * block_size + batch.positions % block_size
    cu_seqlens_q = np.zeros(batch.num_seqs + 1, dtype=np.int32)
    np.cumsum(batch.q_lens, out=cu_seqlens_q[1:])
    upload = device.upload
    return StepInputs(
        token_ids=upload(batch.token_ids),
        slots=upload(np.repeat(batch.slots, batch.q_lens)),
        positions=upload(batch.positions),
        sample_index=upload(batch.sample_index),
        meta=AttentionMeta(
            cu_seqlens_q=cu_seqlens_q,
            seq_lens=batch.seq_lens,
            block_table=table,
            slot_mapping=slot_mapping,
            cu_seqlens_q_device=upload(cu_seqlens_q),
            seq_lens_device=upload(batch.seq_lens),
            block_table_device=upload(table),
            slot_mapping_device=upload(slot_mapping),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeShape:
    """The largest decode step: sequences, and blocks of a sequence."""

    num_rows: int
    max_blocks: int
    block_size: int

    def sections(self, num_rows: int) -> list[int]:
        """Words of token_ids, slots, positions, sample_index, seq_lens, cu_seqlens_q and the block
        table of a step with that many rows, each rounded up."""
        sizes = [num_rows] * 5 + [num_rows + 1, num_rows * self.max_blocks]
        return [-(-size // _ALIGNED_WORDS) * _ALIGNED_WORDS for size in sizes]

    @property
    def num_words(self) -> int:
        return sum(self.sections(self.num_rows))

    @property
    def num_bytes(self) -> int:
        """Of a DecodeMemory, on the device."""
        return DType.INT32.num_bytes(self.num_words) + DType.INT64.num_bytes(self.num_rows)


class DecodeMemory:
    """One host and one device copy of everything that a decode step reads, for all sizes of it.

    All int32 arrays lie in one piece, so that a step copies twice, whatever it holds.
    """

    def __init__(self, device: Device, shape: DecodeShape) -> None:
        self.device = device
        self.shape = shape
        self.words: Int32 = np.zeros(shape.num_words, np.int32)
        self.slot_mapping: NDArray[np.int64] = np.zeros(shape.num_rows, np.int64)
        self.words_device = device.empty(self.words.shape, DType.INT32)
        self.slot_mapping_device = device.empty(self.slot_mapping.shape, DType.INT64)


class DecodeInputs:
    """StepInputs of exactly `num_rows` sequences with one new token each, always the same tensors.

    A step of fewer sequences is padded with rows that write to the null block and are not sampled.
    """

    def __init__(self, memory: DecodeMemory, num_rows: int) -> None:
        shape = memory.shape
        sections = shape.sections(num_rows)
        self.num_rows = num_rows
        self._memory = memory
        self._block_size = shape.block_size
        self._rows = np.arange(num_rows, dtype=np.int32)
        self._ends = np.arange(num_rows + 1, dtype=np.int32)
        self._host_words = memory.words[: sum(sections)]
        self._device_words = memory.words_device[: sum(sections)]
        self._host_slots = memory.slot_mapping[:num_rows]
        self._device_slots = memory.slot_mapping_device[:num_rows]
        table_words = num_rows * shape.max_blocks
        lengths = [num_rows] * 5 + [num_rows + 1, table_words]
        host = np.split(self._host_words, np.cumsum(sections)[:-1])
        host = [x[:length] for x, length in zip(host, lengths, strict=True)]
        on_device = self._device_words.split(sections)
        on_device = [x[:length] for x, length in zip(on_device, lengths, strict=True)]
        self._host = host[:6]
        self._table = host[6].reshape(num_rows, shape.max_blocks)
        token_ids, slots, positions, sample_index, seq_lens, cu_seqlens_q, table = on_device
        self.step = StepInputs(
            token_ids=token_ids,
            slots=slots,
            positions=positions,
            sample_index=sample_index,
            meta=AttentionMeta(
                cu_seqlens_q=host[5],
                seq_lens=host[4],
                block_table=self._table,
                slot_mapping=self._host_slots,
                cu_seqlens_q_device=cu_seqlens_q,
                seq_lens_device=seq_lens,
                block_table_device=table.view(num_rows, shape.max_blocks),
                slot_mapping_device=self._device_slots,
            ),
        )

    def fill(self, batch: Batch, tables: Int32) -> None:
        """Copy a batch of one token a sequence to the device; tables as in `upload_inputs`."""
        num_seqs, block_size = batch.num_seqs, self._block_size
        token_ids, slots, positions, sample_index, seq_lens, cu_seqlens_q = self._host
        token_ids[:num_seqs] = batch.token_ids
        slots[:num_seqs] = batch.slots
        positions[:num_seqs] = batch.positions
        sample_index[:num_seqs] = batch.sample_index
        seq_lens[:num_seqs] = batch.seq_lens
        cu_seqlens_q[:] = self._ends
        num_used = -(-int(batch.seq_lens.max()) // block_size)
        self._table[:num_seqs, :num_used] = tables[batch.slots, :num_used]
        blocks = self._table[self._rows[:num_seqs], batch.positions // block_size]
        slot_mapping = self._host_slots[:num_seqs]
        np.multiply(blocks, block_size, out=slot_mapping)
        slot_mapping += batch.positions % block_size
        if num_seqs < self.num_rows:
            self._pad(num_seqs)
        self._upload()

    def fill_padding(self) -> None:
        """A step of padding only, to run once before it is captured."""
        self._host[5][:] = self._ends
        self._pad(0)
        self._upload()

    def _pad(self, first: int) -> None:
        """Rows from `first` on: token 0 at position 0, alone in the null block."""
        for values, padding in zip(self._host[:5], (0, 0, 0, first, 1), strict=True):
            values[first:] = padding
        self._table[first:, 0] = NULL_BLOCK
        self._host_slots[first:] = NULL_BLOCK * self._block_size

    def _upload(self) -> None:
        device = self._memory.device
        device.upload(self._host_words, into=self._device_words)
        device.upload(self._host_slots, into=self._device_slots)
