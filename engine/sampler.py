"""The host's part of sampling: settings of every slot in arrays, cut to a SamplingBatch a step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence as Seq
from itertools import chain

import numpy as np

from hal.engine.batch import Float32, Int32, SampledLogprobs, SamplingBatch, SamplingSettings
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
        self._settings: SamplingSettings | None = None
        self._settings_slots: Int32 = _NO_IDS

    def assign(self, seq: Sequence) -> None:
        """Give the sequence's slot its settings; also after a preemption, with output so far."""
        slot, params = seq.slot, seq.request.params
        self._settings = None
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

    def record(self, slots: Int32, token_ids: Int32) -> None:
        """Every slot (each at most once) has sampled its token."""
        self._token_index[slots] += 1
        rows = np.flatnonzero(self._has_penalties[slots])
        if len(rows):
            for slot, token in zip(slots[rows].tolist(), token_ids[rows].tolist(), strict=True):
                self._token_counts[slot].add(token)

    def build(self, slots: Int32, rows: Seq[Sequence]) -> SamplingBatch:
        """Settings of the sampled rows: rows[i] is the sequence in slots[i]."""
        bias_rows, bias_ids, bias_values = self._bias(slots, rows)
        penalty_rows, penalty_ids, penalty_counts = self._penalties(slots)
        return SamplingBatch(
            settings=self._settings_of(slots),
            token_index=self._token_index[slots],
            bias_rows=bias_rows,
            bias_ids=bias_ids,
            bias_values=bias_values,
            penalty_rows=penalty_rows,
            penalty_ids=penalty_ids,
            penalty_counts=penalty_counts,
        )

    def _settings_of(self, slots: Int32) -> SamplingSettings:
        """The same object for the same array of slots, until a slot is assigned."""
        if self._settings is None or slots is not self._settings_slots:
            self._settings_slots = slots
            self._settings = SamplingSettings(
                temperature=self._temperature[slots],
                top_k=self._top_k[slots],
                top_p=self._top_p[slots],
                min_p=self._min_p[slots],
                seeds=self._seeds[slots],
                num_logprobs=self._num_logprobs[slots],
                presence=self._presence[slots],
                frequency=self._frequency[slots],
                repetition=self._repetition[slots],
            )
        return self._settings

    def _bias(self, slots: Int32, rows: Seq[Sequence]) -> tuple[Int32, Int32, Float32]:
        biased = np.flatnonzero(self._has_bias[slots])
        if not len(biased):
            return _NO_IDS, _NO_IDS, _NO_VALUES
        biases = [_row_bias(rows[row]) for row in biased.tolist()]
        # A row whose last ban ended stays neutral, so it is not looked at again.
        self._has_bias[slots[biased]] = [len(bias) > 0 for bias in biases]
        return (
            np.repeat(biased.astype(np.int32), [len(bias) for bias in biases]),
            np.array(list(chain.from_iterable(biases)), np.int32),
            np.array([value for bias in biases for value in bias.values()], np.float32),
        )

    def _penalties(self, slots: Int32) -> tuple[Int32, Int32, Int32]:
        penalised = np.flatnonzero(self._has_penalties[slots])
        if not len(penalised):
            return _NO_IDS, _NO_IDS, _NO_IDS
        counts = [self._token_counts[slot] for slot in slots[penalised].tolist()]
        return (
            np.repeat(penalised.astype(np.int32), [len(c.ids) for c in counts]),
            _concatenate([c.ids for c in counts]),
            _concatenate([c.counts for c in counts]),
        )


def _concatenate(arrays: list[array[int]]) -> Int32:
    """One writable copy; joining bytes takes a thirtieth of an ndarray for each part."""
    return np.frombuffer(bytearray().join(arrays), np.int32)


def _row_bias(seq: Sequence) -> dict[int, float]:
    """The request's bias; until min_tokens all ids that would stop the sequence are banned."""
    params = seq.request.params
    if seq.num_output_tokens >= params.min_tokens:
        return dict(params.logit_bias)
    return {**params.logit_bias, **dict.fromkeys(seq.stop_ids, -math.inf)}


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
