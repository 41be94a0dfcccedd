"""Turns what the scheduler decided into the arrays of a Batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hal.engine.batch import TOKEN_ON_DEVICE, Batch, Index, Int32, Pools, SamplingBatch, Swaps
from hal.engine.request import Pooling
from hal.engine.sequence import Sequence
from hal.engine.slots import Slots


@dataclass(frozen=True, slots=True)
class Chunk:
    """Known tokens start .. end of one sequence, sent from the host."""

    seq: Sequence
    start: int
    end: int
    completes_prefill: bool

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """What the block manager owes the executor in this step, as in `Batch`."""

    updates: Int32
    copies: Int32
    swaps: Swaps | None


class DecodeRows:
    """The arrays of a Batch that stay the same while the same slots decode, one token each."""

    def __init__(self, slots: Index) -> None:
        self.slots = slots
        self.batch_slots = slots.astype(np.int32)
        self.q_lens = np.ones(len(slots), np.int32)
        self.token_ids = np.full(len(slots), TOKEN_ON_DEVICE, np.int32)
        self.sample_index = np.arange(len(slots), dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledStep:
    """Who runs and who is sampled, in the order of the Batch: decodes, then chunks.

    slots      [S]
    row_slots  [N], the sampled rows; a completed prefill contributes all of its family
    """

    step: int
    decodes: DecodeRows
    chunks: list[Chunk]
    slots: Index
    row_slots: Index

    @property
    def num_prefilled(self) -> int:
        """Tokens of the chunks."""
        return sum(chunk.num_tokens for chunk in self.chunks)


def make_step(step: int, decodes: DecodeRows, chunks: list[Chunk]) -> ScheduledStep:
    slots = row_slots = decodes.slots
    if chunks:
        completed = [chunk.seq.family for chunk in chunks if chunk.completes_prefill]
        members = [member.slot for family in completed for member in family]
        slots = np.concatenate([slots, [chunk.seq.slot for chunk in chunks]])
        row_slots = np.concatenate([row_slots, np.array(members, np.intp)])
    return ScheduledStep(
        step=step, decodes=decodes, chunks=chunks, slots=slots, row_slots=row_slots
    )


def build_batch(
    step: ScheduledStep,
    slots: Slots,
    sampling: SamplingBatch,
    changes: BlockChanges,
) -> Batch:
    """The step's arrays."""
    decodes = step.decodes
    decode_positions = slots.num_computed.take(decodes.slots)
    q_lens, ends = [decodes.q_lens], [decode_positions + 1]
    token_ids, positions = [decodes.token_ids], [decode_positions]
    sample_index = [decodes.sample_index]
    num_tokens = len(decode_positions)
    for chunk in step.chunks:
        start, end = chunk.start, chunk.end
        q_lens.append(np.array([end - start], np.int32))
        ends.append(np.array([end], np.int32))
        token_ids.append(slots.tokens[chunk.seq.slot, start:end])
        positions.append(np.arange(start, end, dtype=np.int32))
        num_tokens += end - start
        if chunk.completes_prefill:
            sample_index.append(np.full(len(chunk.seq.family), num_tokens - 1, np.int32))
    return Batch(
        step=step.step,
        slots=_batch_slots(step.slots, decodes),
        q_lens=_joined(q_lens),
        seq_lens=_joined(ends),
        token_ids=_joined(token_ids),
        positions=_joined(positions),
        block_updates=changes.updates,
        block_copies=changes.copies,
        sample_index=_joined(sample_index),
        sample_slots=_batch_slots(step.row_slots, decodes),
        sampling=sampling,
        pools=_pools(step),
        swaps=changes.swaps,
    )


def _pools(step: ScheduledStep) -> Pools | None:
    """Rows of completed prefills stand behind those of the decodes, a family's side by side."""
    rows: dict[Pooling, list[int]] = {Pooling.LAST: [], Pooling.MEAN: []}
    chunks: list[tuple[int, int, int, int]] = []
    row = token = len(step.decodes.slots)
    for chunk in step.chunks:
        pooling, first = chunk.seq.request.pooling, token
        token += chunk.end - chunk.start
        if pooling is Pooling.MEAN:
            chunks.append((chunk.seq.slot, first, token, chunk.start))
        if chunk.completes_prefill:
            if pooling is not None:
                rows[pooling].append(row)
            row += len(chunk.seq.family)
    if not chunks and not rows[Pooling.LAST]:
        return None
    return Pools(
        last=np.array(rows[Pooling.LAST], np.int32),
        mean=np.array(rows[Pooling.MEAN], np.int32),
        chunks=np.array(chunks, np.int32).reshape(-1, 4),
    )


def _batch_slots(slots: Index, decodes: DecodeRows) -> Int32:
    return decodes.batch_slots if slots is decodes.slots else slots.astype(np.int32)


def _joined(parts: list[Int32]) -> Int32:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
