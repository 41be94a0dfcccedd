"""Turns what the scheduler decided into the arrays of a Batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from hal.engine.batch import TOKEN_ON_DEVICE, Batch, Int32, SamplingBatch
from hal.engine.block_manager import BlockCopy
from hal.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Known tokens start .. start + num_tokens of one sequence, sent from the host."""

    seq: Sequence
    start: int
    num_tokens: int

    @property
    def completes_prefill(self) -> bool:
        return self.start + self.num_tokens == len(self.seq.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledStep:
    """Who runs and who is sampled, in the order of the Batch: decodes, then chunks.

    rows  the N sampled sequences; a completed prefill contributes all of its family
    """

    step: int
    decodes: list[Sequence]
    chunks: list[Chunk]
    rows: list[Sequence]
    seqs: list[Sequence]


def make_step(step: int, decodes: list[Sequence], chunks: list[Chunk]) -> ScheduledStep:
    completed = (chunk.seq.family for chunk in chunks if chunk.completes_prefill)
    return ScheduledStep(
        step=step,
        decodes=decodes,
        chunks=chunks,
        rows=[*decodes, *chain.from_iterable(completed)],
        seqs=[*decodes, *(chunk.seq for chunk in chunks)],
    )


def row_slots(step: ScheduledStep, decode_slots: Int32) -> Int32:
    """The slot of each sampled row."""
    rows = step.rows[len(decode_slots) :]
    if not rows:
        return decode_slots
    return np.concatenate([decode_slots, np.array([seq.slot for seq in rows], np.int32)])


def build_batch(
    step: ScheduledStep,
    decode_slots: Int32,
    decode_positions: Int32,
    sample_slots: Int32,
    sampling: SamplingBatch,
    updates: tuple[Int32, Int32],
) -> Batch:
    """The step's arrays; `updates` are block_updates and block_copies."""
    num_decodes = len(decode_slots)
    slots, q_lens, ends = [decode_slots], [np.ones(num_decodes, np.int32)], [decode_positions + 1]
    token_ids = [np.full(num_decodes, TOKEN_ON_DEVICE, np.int32)]
    positions = [decode_positions]
    sample_index = [np.arange(num_decodes, dtype=np.int32)]
    num_tokens = num_decodes
    for chunk in step.chunks:
        end = chunk.start + chunk.num_tokens
        slots.append(np.array([chunk.seq.slot], np.int32))
        q_lens.append(np.array([chunk.num_tokens], np.int32))
        ends.append(np.array([end], np.int32))
        token_ids.append(np.array(chunk.seq.tokens[chunk.start : end], np.int32))
        positions.append(np.arange(chunk.start, end, dtype=np.int32))
        num_tokens += chunk.num_tokens
        if chunk.completes_prefill:
            sample_index.append(np.full(len(chunk.seq.family), num_tokens - 1, np.int32))
    return Batch(
        step=step.step,
        slots=np.concatenate(slots),
        q_lens=np.concatenate(q_lens),
        seq_lens=np.concatenate(ends),
        token_ids=np.concatenate(token_ids),
        positions=np.concatenate(positions),
        block_updates=updates[0],
        block_copies=updates[1],
        sample_index=np.concatenate(sample_index),
        sample_slots=sample_slots,
        sampling=sampling,
    )


def block_update_array(seqs: list[Sequence]) -> Int32:
    """What changed in the tables of running sequences since the last call, [U, 3]."""
    slots: list[int] = []
    indices: list[int] = []
    blocks: list[int] = []
    for seq in seqs:
        table = seq.table
        slots.extend([seq.slot] * len(table.unsent))
        indices.extend(table.unsent)
        blocks.extend([table.blocks[index] for index in table.unsent])
        table.unsent = []
    return np.array([slots, indices, blocks], np.int32).T.copy()


def block_copy_array(copies: list[BlockCopy]) -> Int32:
    """[C, 2]"""
    pairs = [(copy.source, copy.destination) for copy in copies]
    return np.array(pairs, np.int32).reshape(len(pairs), 2)
