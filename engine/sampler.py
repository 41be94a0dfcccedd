"""The host's part of sampling: settings of every slot in arrays, cut to a SamplingBatch a step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain

import numpy as np

from hal.engine.batch import (
    Float32,
    Index,
    Int32,
    SampledLogprobs,
    SamplingBatch,
    SamplingSettings,
)
from hal.engine.guided_rows import GuidedRows
from hal.engine.request import TokenLogprobs
from hal.engine.sequence import Sequence

NO_LOGPROBS = -1

_NO_IDS: Int32 = np.empty(0, np.int32)
_NO_VALUES: Float32 = np.empty(0, np.float32)


class TokenCounts:
    """Distinct tokens of one sequence and how often each was sampled (0: only in the prompt)."""

    __slots__ = ("ids", "counts", "_index")

    def __init__(self, prompt: Seq[int], output: Seq[int]) -> None:
        self.ids = array("i", dict.fromkeys(prompt))
        self.counts = array("i", bytes(4 * len(self.ids)))
        self._index = {token: index for index, token in enumerate(self.ids)}
        for token in output:
            self.add(token)

    def add(self, token: int) -> None:
        index = self._index.get(token)
        if index is None:
            self._index[token] = len(self.ids)
            self.ids.append(token)
            self.counts.append(1)
        else:
            self.counts[index] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """What stays the same while the same slots are sampled.

    biased, penalised: rows with a bias or a ban, rows with penalties
    """

    slots: Index
    settings: SamplingSettings
    biased: Index
    penalised: Index


class SamplingState:
    """Sampling settings by slot, written once when a sequence gets its slot."""

    def __init__(self, max_num_seqs: int) -> None:
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int32)
        self._top_p = np.ones(max_num_seqs, np.float32)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seeds = np.zeros(max_num_seqs, np.uint64)
        self._token_index = np.zeros(max_num_seqs, np.int32)
        self._num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, np.int32)
        self._presence = np.zeros(max_num_seqs, np.float32)
        self._frequency = np.zeros(max_num_seqs, np.float32)
        self._repetition = np.ones(max_num_seqs, np.float32)
        self._has_bias = np.zeros(max_num_seqs, np.bool_)
        self._has_penalties = np.zeros(max_num_seqs, np.bool_)
        self._token_counts: dict[int, TokenCounts] = {}
        self.guided = GuidedRows()
        self._row_settings: RowSettings | None = None  # of the slots that were looked up last

    def assign(self, seq: Sequence) -> None:
        """Give the sequence's slot its settings; also after a preemption, with output so far."""
        slot, params = seq.slot, seq.request.params
        self._row_settings = None
        self._temperature[slot] = params.temperature
        self._top_k[slot] = max(params.top_k, 0)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seeds[slot] = seq.seed
        self._token_index[slot] = seq.num_output_tokens
        self._num_logprobs[slot] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._presence[slot] = params.presence_penalty
        self._frequency[slot] = params.frequency_penalty
        self._repetition[slot] = params.repetition_penalty
        self._has_bias[slot] = bool(params.logit_bias) or params.min_tokens > 0
        self._has_penalties[slot] = params.has_penalties
        if params.has_penalties:
            output = seq.tokens[seq.num_prompt_tokens :]
            self._token_counts[slot] = TokenCounts(seq.request.prompt_token_ids, output)
        self.guided.assign(slot, seq.grammar, seq.tokens[seq.num_prompt_tokens :])

    def record(self, slots: Index, token_ids: Int32) -> None:
        """Every slot (each at most once) has sampled its token."""
        self._token_index[slots] += 1
        self.guided.record(slots, token_ids)
        for row in self._rows(slots).penalised.tolist():
            self._token_counts[int(slots[row])].add(int(token_ids[row]))

    def build(self, slots: Index, seqs: Seq[Sequence | None]) -> SamplingBatch:
        """Settings of the sampled rows; `seqs` are the sequences of all slots."""
        rows = self._rows(slots)
        bias_rows, bias_ids, bias_values = self._bias(rows, seqs)
        penalty_rows, penalty_ids, penalty_counts = self._penalties(rows)
        return SamplingBatch(
            settings=rows.settings,
            token_index=self._token_index.take(slots),
            bias_rows=bias_rows,
            bias_ids=bias_ids,
            bias_values=bias_values,
            penalty_rows=penalty_rows,
            penalty_ids=penalty_ids,
            penalty_counts=penalty_counts,
            masks=self.guided.masks(slots),
        )

    def _rows(self, slots: Index) -> RowSettings:
        if self._row_settings is None or self._row_settings.slots is not slots:
            self._row_settings = RowSettings(
                slots=slots,
                settings=self._settings_of(slots),
                biased=np.flatnonzero(self._has_bias.take(slots)),
                penalised=np.flatnonzero(self._has_penalties.take(slots)),
            )
        return self._row_settings

    def _settings_of(self, slots: Index) -> SamplingSettings:
        return SamplingSettings(
            temperature=self._temperature.take(slots),
            top_k=self._top_k.take(slots),
            top_p=self._top_p.take(slots),
            min_p=self._min_p.take(slots),
            seeds=self._seeds.take(slots),
            num_logprobs=self._num_logprobs.take(slots),
            presence=self._presence.take(slots),
            frequency=self._frequency.take(slots),
            repetition=self._repetition.take(slots),
        )

    def _bias(self, rows: RowSettings, seqs: Seq[Sequence | None]) -> tuple[Int32, Int32, Float32]:
        biased = rows.biased
        if not len(biased):
            return _NO_IDS, _NO_IDS, _NO_VALUES
        slots = rows.slots[biased]
        biases = [self._row_bias(slot, seqs[slot]) for slot in slots.tolist()]
        has_bias = [len(bias) > 0 for bias in biases]
        if not all(has_bias):
            # A row whose last ban ended stays neutral, so it is not looked at again.
            self._has_bias[slots] = has_bias
            self._row_settings = None
        return (
            np.repeat(biased.astype(np.int32), [len(bias) for bias in biases]),
            np.array(list(chain.from_iterable(biases)), np.int32),
            np.array([value for bias in biases for value in bias.values()], np.float32),
        )

    def _row_bias(self, slot: int, seq: Sequence | None) -> dict[int, float]:
        """The request's bias; until min_tokens all ids that would stop the sequence are banned."""
        assert seq is not None
        params = seq.request.params
        if self._token_index[slot] >= params.min_tokens:
            return dict(params.logit_bias)
        return {**params.logit_bias, **dict.fromkeys(seq.stop_ids, -math.inf)}

    def _penalties(self, rows: RowSettings) -> tuple[Int32, Int32, Int32]:
        penalised = rows.penalised
        if not len(penalised):
            return _NO_IDS, _NO_IDS, _NO_IDS
        counts = [self._token_counts[slot] for slot in rows.slots[penalised].tolist()]
        return (
            np.repeat(penalised.astype(np.int32), [len(c.ids) for c in counts]),
            _concatenate([c.ids for c in counts]),
            _concatenate([c.counts for c in counts]),
        )


def _concatenate(arrays: list[array[int]]) -> Int32:
    """One writable copy; joining bytes takes a thirtieth of an ndarray for each part."""
    return np.frombuffer(bytearray().join(arrays), np.int32)


def row_logprobs(
    sampled: SampledLogprobs | None, row: int, token_id: int, seq: Sequence
) -> tuple[TokenLogprobs, ...]:
    """One row of what the executor computed, cut to the k that the request asked for."""
    k = seq.request.params.logprobs
    if sampled is None or k is None:
        return ()
    return (
        TokenLogprobs(
            token_id=token_id,
            logprob=float(sampled.chosen[row]),
            rank=int(sampled.rank[row]),
            top_ids=tuple(sampled.top_ids[row, :k].tolist()),
            top_logprobs=tuple(sampled.top_logprobs[row, :k].tolist()),
        ),
    )
