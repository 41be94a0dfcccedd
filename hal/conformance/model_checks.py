"""A whole tiny model, teacher-forced: every way to cut and mix the same text gives its logits.

The text is given, so a token that differs does not change what follows; what is judged is every
row of logits. Each schedule starts from a cache full of NaN and from permuted block ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hal.conformance import oracle
from hal.conformance.case import Check, equal, within
from hal.conformance.decoder_oracle import DecoderOracle, plain_decoder
from hal.conformance.limits import REGRET_LIMITS, Tolerance, argmax_regret
from hal.conformance.model_run import Int32, ModelUnderTest, Player
from hal.conformance.run import Outcome, run_checks
from hal.conformance.stage import Float64
from hal.conformance.tiny_models import TinyModel

_LENGTHS = (37, 5, 50, 20)
_NUM_OWN_TOKENS = 12
_PROMPT_LEN = 9  # of the schedules that prefill first and then decode
Schedule = Callable[[Player], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord(Outcome):
    """One check of one model; level: "layer" or "model"."""

    level: str
    model: str
    dtype: str

    def __str__(self) -> str:
        where = f"{self.level} {self.model} {self.dtype} {self.case}"
        return f"{where}: {self.verdict}, {self.detail}".rstrip(", ")


def _alone(chunk: int) -> Schedule:
    def play(player: Player) -> None:
        for seq in range(len(_LENGTHS)):
            while player.num_left(seq):
                player.step((seq, chunk))

    return play


def _together(*chunks: int) -> Schedule:
    """Sequence i in chunks of chunks[i], all in the same steps until each is done."""

    def play(player: Player) -> None:
        while any(player.num_left(seq) for seq in range(len(_LENGTHS))):
            player.step(*((seq, n) for seq, n in enumerate(chunks) if player.num_left(seq)))

    return play


def _prefill_then_decode(player: Player) -> None:
    player.step(*((seq, _PROMPT_LEN) for seq in range(len(_LENGTHS))))
    _together(1, 1, 1, 1)(player)


def _joining_late(player: Player) -> None:
    """Decodes, a chunk and a whole prompt in one batch, in an order that changes."""
    player.step((0, _PROMPT_LEN))
    player.step((2, 16), (0, 1))
    player.step((0, 1), (2, 16), (1, 5))
    player.step((3, 20), (0, 1), (2, 1))
    player.step((2, 3), (0, 16))
    _alone(64)(player)


def _moved_blocks(player: Player) -> None:
    """Every sequence's blocks are copied elsewhere half way, as when a shared block is written."""
    for seq, length in enumerate(_LENGTHS):
        player.step((seq, length // 2))
        player.move_blocks(seq)
    _together(3, 3, 3, 3)(player)


def _after_neighbours(player: Player) -> None:
    """Each text again, after others ran in the very blocks that it now gets, and left their keys
    in them."""
    for seq in range(len(_LENGTHS)):
        player.step((seq, _LENGTHS[seq]))
    for seq in reversed(range(len(_LENGTHS))):
        player.release(seq)
    for seq in range(len(_LENGTHS)):
        player.step((seq, _LENGTHS[seq]))


SCHEDULES: dict[str, Schedule] = {
    "alone, whole": _alone(64),
    "alone, chunks of 1": _alone(1),
    "alone, chunks of 3": _alone(3),
    "alone, chunks of 16": _alone(16),
    "together, whole": _together(*_LENGTHS),
    "together, chunks of 3": _together(3, 3, 3, 3),
    "together, chunks of 1, 3 and 16": _together(16, 3, 1, 3),
    "prefill, then decode": _prefill_then_decode,
    "joining late": _joining_late,
    "after neighbours, in their blocks": _after_neighbours,
    "blocks moved": _moved_blocks,
}
QUICK_SCHEDULES = (
    "alone, whole",
    "together, chunks of 1, 3 and 16",
    "prefill, then decode",
    "after neighbours, in their blocks",
)
OWN_TOKENS = "decoding its own tokens"
GRAPHS = "graph against eager"


def texts_of(model: TinyModel, seed: int) -> tuple[Int32, ...]:
    rng = np.random.default_rng([seed, 7])
    vocab_size = model.shape.vocab_size
    return tuple(rng.integers(0, vocab_size, n).astype(np.int32) for n in _LENGTHS)


class ModelJudge:
    """One model's right answers and limits, computed once for all of its schedules."""

    def __init__(self, model: TinyModel, seed: int) -> None:
        self.model = model
        self.seed = seed
        self.texts = texts_of(model, seed)
        self._oracle, self._plain = DecoderOracle(model), plain_decoder(model)
        self._expected = self._every(self._oracle, self.texts)
        plain = self._every(self._plain, self.texts)
        self._tolerance = Tolerance.of(model.dtype, plain, self._expected)

    def player(self, under_test: ModelUnderTest) -> Player:
        return Player(under_test, self.texts, self.model.shape.window, self.seed)

    def checks(self, logits: Float64) -> Iterator[Check]:
        """Of all texts, one behind the other."""
        return self._checks(logits, self._expected, self._tolerance)

    def checks_of(self, texts: Sequence[Int32], logits: Float64) -> Iterator[Check]:
        """Of other texts, such as what the model itself wrote."""
        expected = self._every(self._oracle, texts)
        own = Tolerance.of(self.model.dtype, self._every(self._plain, texts), expected)
        # Short texts have few rows: the worst row that is plausible is known from all of them.
        worst_row = max(own.worst_row, self._tolerance.worst_row)
        return self._checks(logits, expected, Tolerance(own.overall, worst_row))

    def _every(self, decoder: DecoderOracle, texts: Sequence[Int32]) -> Float64:
        return np.concatenate([decoder.logits(text) for text in texts])

    def _checks(self, logits: Float64, expected: Float64, tolerance: Tolerance) -> Iterator[Check]:
        yield from within("logits", logits, expected, tolerance)
        regret = argmax_regret(logits, oracle.log_softmax(expected))
        allowed = REGRET_LIMITS[self.model.dtype]
        yield Check("argmax regret, worst (nats)", float(regret.max()), allowed)
        # Most rows have a clear favourite, so that their mean is far below the worst.
        yield Check("argmax regret, mean (nats)", float(regret.mean()), allowed / 10)


def model_records(
    under_test: ModelUnderTest, judge: ModelJudge, schedules: tuple[str, ...], invariant: bool
) -> Iterator[ModelRecord]:
    """Every schedule, then the model's own tokens.

    invariant: all of its kernels claim batch invariance, so every schedule has the same bits
    """
    first: Float64 | None = None

    def play(name: str) -> Iterator[Check]:
        nonlocal first
        player = judge.player(under_test)
        SCHEDULES[name](player)
        logits = np.concatenate([player.logits(seq) for seq in range(len(_LENGTHS))])
        yield from judge.checks(logits)
        if first is None:
            first = logits
        elif invariant:
            yield equal("batch-invariant: the bits of the first schedule", logits, first)

    for name in schedules:
        yield _record(judge, name, partial(play, name))
    yield _record(judge, OWN_TOKENS, lambda: _own_tokens(under_test, judge))


_GRAPH_SCHEDULES = ("alone, chunks of 1", "prefill, then decode")


def graph_record(
    replaying: ModelUnderTest,
    eager: ModelUnderTest,
    judge: ModelJudge,
    num_graphs: Callable[[], int],
    is_exact: bool,
) -> ModelRecord:
    """The same model twice, the first with its decode steps captured and replayed.

    num_graphs: how many of its steps were captured by now
    is_exact: a replay has as many rows as the batch, or rows do not depend on their number
    """

    def play() -> Iterator[Check]:
        for name in _GRAPH_SCHEDULES:
            logits = []
            for model in (replaying, eager):
                player = judge.player(model)
                SCHEDULES[name](player)
                logits.append(np.concatenate([player.logits(s) for s in range(len(_LENGTHS))]))
            yield from judge.checks(logits[0])
            if is_exact:
                yield equal(f"{name}: the bits of eager steps", *logits)
        yield Check("no step was captured", float(num_graphs() == 0), 0.0)

    return _record(judge, GRAPHS, play)


def _own_tokens(under_test: ModelUnderTest, judge: ModelJudge) -> Iterator[Check]:
    """Greedy decoding of two sequences whose tokens never leave the device."""
    player = judge.player(under_test)
    seqs = (0, 3)
    player.step(*((seq, _PROMPT_LEN) for seq in seqs))
    for _ in range(_NUM_OWN_TOKENS):
        last = np.array([player.sampled(seq)[-1] for seq in seqs])
        is_lost = (last < 0) | (last >= judge.model.shape.vocab_size)
        yield Check("sampled no token of the vocabulary", float(is_lost.sum()), 0.0)
        if is_lost.any():
            return  # to look such a token up would be an error of ours, and could end the driver
        player.decode(*seqs)
    texts = []
    for seq in seqs:
        favourites = np.argmax(player.logits(seq)[_PROMPT_LEN - 1 :], axis=1)
        sampled = np.array(player.sampled(seq), dtype=np.int32)
        yield equal(f"sequence {seq}: sampled tokens", sampled, favourites)
        texts.append(np.concatenate([judge.texts[seq][:_PROMPT_LEN], sampled[:-1]]))
    yield from judge.checks_of(texts, np.concatenate([player.logits(seq) for seq in seqs]))


def _record(judge: ModelJudge, case: str, start: Callable[[], Iterator[Check]]) -> ModelRecord:
    ran = run_checks(start)
    return ModelRecord(
        level="model",
        model=judge.model.shape.model_type,
        dtype=str(judge.model.dtype),
        case=case if judge.seed == 0 else f"{case}, seed {judge.seed}",
        raised=ran.raised,
        checks=ran.checks,
    )
