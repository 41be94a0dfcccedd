"""The ops of sampling: exact tokens and ids, ties, bad rows, a distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.conformance import oracle
from hal.conformance.case import Case, Check, equal
from hal.conformance.sampling_oracle import RowSettings, sample_row
from hal.conformance.stage import Float64, Stage
from hal.dtypes import DType
from hal.opset.sampling import SampleProblem, SamplingInputs
from hal.select import Kernel
from hal.tensor import Tensor

Rows = Callable[[np.random.Generator, int, int], Float64]
"""(rng, num_rows, vocab_size) -> logits"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustments:
    """Host arrays of the sparse part of SamplingInputs and the penalties of each row."""

    bias_rows: NDArray[np.int32]
    bias_ids: NDArray[np.int32]
    bias_values: NDArray[np.float32]
    penalty_rows: NDArray[np.int32]
    penalty_ids: NDArray[np.int32]
    penalty_counts: NDArray[np.int32]
    presence: NDArray[np.float32]
    frequency: NDArray[np.float32]
    repetition: NDArray[np.float32]


def no_adjustments(num_rows: int) -> Adjustments:
    none, nothing = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    off = np.zeros(num_rows, dtype=np.float32)
    return Adjustments(
        bias_rows=none,
        bias_ids=none,
        bias_values=nothing,
        penalty_rows=none,
        penalty_ids=none,
        penalty_counts=none,
        presence=off,
        frequency=off,
        repetition=off + 1,
    )


def sampling_inputs(
    stage: Stage, rows: Sequence[RowSettings], adjustments: Adjustments | None = None
) -> SamplingInputs:
    """The device copies of a step's settings, flags as a sampler sets them."""
    extra = adjustments or no_adjustments(len(rows))

    def each(name: str, dtype: type[np.generic]) -> Tensor:
        return stage.indices(np.array([getattr(row, name) for row in rows], dtype=dtype))

    seeds = np.array([row.seed for row in rows], dtype=np.uint64).view(np.int64)
    return SamplingInputs(
        temperature=each("temperature", np.float32),
        top_k=each("top_k", np.int32),
        top_p=each("top_p", np.float32),
        min_p=each("min_p", np.float32),
        seeds=stage.indices(seeds),
        token_index=each("token_index", np.int32),
        bias_rows=stage.indices(extra.bias_rows),
        bias_ids=stage.indices(extra.bias_ids),
        bias_values=stage.indices(extra.bias_values),
        penalty_rows=stage.indices(extra.penalty_rows),
        penalty_ids=stage.indices(extra.penalty_ids),
        penalty_counts=stage.indices(extra.penalty_counts),
        presence=stage.indices(extra.presence),
        frequency=stage.indices(extra.frequency),
        repetition=stage.indices(extra.repetition),
        is_all_greedy=all(row.temperature == 0 for row in rows),
        has_filters=any(row.top_k or row.top_p < 1 or row.min_p for row in rows),
        has_bias=len(extra.bias_rows) > 0,
        has_penalties=len(extra.penalty_rows) > 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCase(Case):
    """Tokens must be the oracle's, each row whatever its neighbours; logits keep their bits."""

    problem: SampleProblem
    rows: tuple[RowSettings, ...]
    logits: Rows

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        host = self.logits(stage.rng, len(self.rows), self.problem.vocab_size)
        logits = stage.place(host, DType.FLOAT32)
        call = stage.bind(kernel, self.problem)
        tokens = self._sample(call, stage, logits.host, self.rows)
        expected = [sample_row(x, row) for x, row in zip(logits.host, self.rows, strict=True)]
        yield equal("tokens", tokens, np.array(expected, dtype=np.float64))
        some = slice(len(self.rows) // 2, None)
        alone = self._sample(call, stage, logits.host[some], self.rows[some])
        yield equal("tokens among other neighbours", alone, tokens[some])

    def _sample(
        self, call: Callable[..., None], stage: Stage, host: Float64, rows: Sequence[RowSettings]
    ) -> Float64:
        logits = stage.place(host, DType.FLOAT32).device
        tokens = stage.indices(np.full(len(rows), -7, dtype=np.int32))
        call(logits, sampling_inputs(stage, rows), tokens)
        unchanged = equal("logits", stage.read(logits), host)
        assert unchanged.is_ok, "sample changed its logits"
        return stage.read(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionCase(Case):
    """Frequencies over many seeds and many token indices follow the softmax (chi-squared)."""

    problem: SampleProblem
    # Chi-squared of 7 degrees of freedom passes 29.88 once in 10,000; the seeds are fixed.
    limit: float = 29.88

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        vocab_size, num_draws = self.problem.vocab_size, 4000
        logits = stage.rng.standard_normal(vocab_size)
        expected = num_draws * np.exp(oracle.log_softmax(logits / 1.5))
        rows = stage.place(np.tile(logits, (num_draws, 1)), DType.FLOAT32).device
        call = stage.bind(kernel, self.problem)
        for name, settings in (
            ("seeds", [RowSettings(temperature=1.5, seed=i) for i in range(num_draws)]),
            ("indices", [RowSettings(temperature=1.5, token_index=i) for i in range(num_draws)]),
        ):
            tokens = stage.indices(np.full(num_draws, -7, dtype=np.int32))
            call(rows, sampling_inputs(stage, settings), tokens)
            drawn = stage.read(tokens).astype(np.int64)
            yield Check(f"{name} in range", float(np.sum((drawn < 0) | (drawn >= vocab_size))), 0.0)
            counts = np.bincount(drawn.clip(0, vocab_size - 1), minlength=vocab_size)
            yield Check(
                f"chi-squared over {name}",
                float(np.sum((counts - expected) ** 2 / expected)),
                self.limit,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustCase(Case):
    """Penalties of seen ids, then bias; every other logit keeps its bits."""

    problem: SampleProblem
    has_penalties: bool
    has_bias: bool
    is_in_place: bool = False

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        num_rows, vocab_size = 5, self.problem.vocab_size
        logits = stage.normal((num_rows, vocab_size), DType.FLOAT32, 4.0)
        changes = self._adjustments(stage.rng, num_rows, vocab_size)
        inputs = sampling_inputs(stage, [RowSettings()] * num_rows, changes)
        out = stage.poisoned((num_rows, vocab_size), DType.FLOAT32)
        target = logits.device if self.is_in_place else out
        stage.bind(kernel, self.problem)(logits.device, inputs, target)
        result, expected = stage.read(target), _adjusted(logits.host, changes)
        yield self.close("out", result, expected)
        is_listed = np.zeros(logits.host.shape, dtype=bool)
        is_listed[changes.bias_rows, changes.bias_ids] = True
        is_listed[changes.penalty_rows, changes.penalty_ids] = True
        yield equal("other logits", result[~is_listed], logits.host[~is_listed])

    def _adjustments(self, rng: np.random.Generator, num_rows: int, vocab_size: int) -> Adjustments:
        index = rng.permutation(num_rows * vocab_size)[:40].astype(np.int32)
        rows, ids = index // vocab_size, index % vocab_size
        penalised = slice(0, 30 if self.has_penalties else 0)
        biased = slice(20, 40 if self.has_bias else 20)  # ten ids have both
        bias_values = rng.standard_normal(40).astype(np.float32) * 5
        bias_values[25] = -np.inf
        return Adjustments(
            bias_rows=rows[biased],
            bias_ids=ids[biased],
            bias_values=bias_values[biased],
            penalty_rows=rows[penalised],
            penalty_ids=ids[penalised],
            penalty_counts=rng.integers(0, 4, 40).astype(np.int32)[penalised],
            presence=rng.uniform(-2, 2, num_rows).astype(np.float32),
            frequency=rng.uniform(-2, 2, num_rows).astype(np.float32),
            repetition=rng.uniform(0.5, 2, num_rows).astype(np.float32),
        )


def _adjusted(logits: Float64, changes: Adjustments) -> Float64:
    out = logits.copy()
    seen = zip(changes.penalty_rows, changes.penalty_ids, changes.penalty_counts, strict=True)
    for row, token_id, count in seen:
        repetition = float(changes.repetition[row])
        value = out[row, token_id]
        value = value / repetition if value > 0 else value * repetition
        value -= float(changes.frequency[row]) * int(count)
        out[row, token_id] = value - (float(changes.presence[row]) if count > 0 else 0.0)
    biases = zip(changes.bias_rows, changes.bias_ids, changes.bias_values, strict=True)
    for row, token_id, value in biases:
        out[row, token_id] += float(value)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCase(Case):
    """-inf where a bit is 0; all other logits, masked rows or not, keep their bits."""

    problem: SampleProblem
    rows: tuple[int, ...]
    is_in_place: bool = False

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        num_rows, vocab_size = 5, self.problem.vocab_size
        logits = stage.normal((num_rows, vocab_size), DType.FLOAT32, 4.0)
        # Bits behind the vocabulary are set at random, too: they must not be read as ids.
        bits = stage.rng.random((len(self.rows), -(-vocab_size // 32) * 32)) < 0.3
        bits[0, :64] = True
        bits[-1, -64:] = False
        words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
        out = stage.poisoned((num_rows, vocab_size), DType.FLOAT32)
        target = logits.device if self.is_in_place else out
        rows = stage.indices(np.array(self.rows, dtype=np.int32))
        stage.bind(kernel, self.problem)(logits.device, rows, stage.indices(words), target)
        expected = logits.host.copy()
        for row, allowed in zip(self.rows, bits[:, :vocab_size], strict=True):
            expected[row, ~allowed] = -np.inf
        yield equal("out", stage.read(target), expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobsCase(Case):
    """Ids and ranks exactly; equal values by id; a row without a token (-1) is NaN."""

    problem: SampleProblem
    num_top: int
    logits: Rows

    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        num_rows, vocab_size = 9, self.problem.vocab_size
        host = self.logits(stage.rng, num_rows, vocab_size)
        tokens = stage.rng.integers(0, vocab_size, num_rows).astype(np.int32)
        host[-1], tokens[-1] = np.nan, -1  # what `sample` answers to such a row
        logits = stage.place(host, DType.FLOAT32)
        out = _LogprobsOut(stage, num_rows, self.num_top)
        stage.bind(kernel, self.problem)(logits.device, stage.indices(tokens), *out.tensors())
        yield from self._checks(stage, out, logits.host, tokens)

    def _checks(
        self, stage: Stage, out: _LogprobsOut, logits: Float64, tokens: NDArray[np.int32]
    ) -> Iterator[Check]:
        every = oracle.log_softmax(logits)
        order = np.array([oracle.ranked(row) for row in logits])
        rows, good = np.arange(len(tokens)), slice(0, -1)  # ids of the last row mean nothing
        chosen = every[rows, tokens][:, None]
        yield self.close("chosen", stage.read(out.chosen)[:, None], chosen)
        ranks = np.argsort(order, axis=1)[rows, tokens].astype(np.float64)
        yield equal("rank", stage.read(out.rank)[good], ranks[good])
        if self.num_top:
            best = order[:, : self.num_top]
            yield equal("top_ids", stage.read(out.top_ids)[good], best[good].astype(np.float64))
            yield self.close("top", stage.read(out.top), np.take_along_axis(every, best, axis=1))


class _LogprobsOut:
    def __init__(self, stage: Stage, num_rows: int, num_top: int) -> None:
        self.chosen = stage.poisoned((num_rows,), DType.FLOAT32)
        self.rank = stage.indices(np.full(num_rows, -7, dtype=np.int32))
        self.top_ids = stage.indices(np.full((num_rows, num_top), -7, dtype=np.int32))
        self.top = stage.device.empty((num_rows, num_top), DType.FLOAT32)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.chosen, self.rank, self.top_ids, self.top
