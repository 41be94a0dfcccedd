"""A batch on its way to the other ranks, and what a step that fails here means for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest

from hal.engine.batch import Batch, SamplingBatch, SamplingSettings, StepResult
from hal.engine.batch_codec import BatchDecoder, BatchEncoder, KnownMasks
from hal.engine.ranked_executor import RankedExecutor
from hal.errors import RANK_LOST, EngineError

RNG = np.random.default_rng(7)


def ints(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return RNG.integers(-1, 1 << 30, shape).astype(np.int32)


def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RNG.normal(size=shape).astype(np.float32)


def make_batch(num_rows: int = 3, num_updates: int = 2) -> Batch:
    settings = SamplingSettings(
        temperature=floats(num_rows),
        top_k=ints(num_rows),
        top_p=floats(num_rows),
        min_p=floats(num_rows),
        seeds=RNG.integers(0, 1 << 63, num_rows).astype(np.uint64),
        num_logprobs=ints(num_rows),
        presence=floats(num_rows),
        frequency=floats(num_rows),
        repetition=floats(num_rows),
    )
    sampling = SamplingBatch(
        settings=settings,
        token_index=ints(num_rows),
        bias_rows=ints(5),
        bias_ids=ints(5),
        bias_values=floats(5),
        penalty_rows=ints(2),
        penalty_ids=ints(2),
        penalty_counts=ints(2),
    )
    return Batch(
        step=9,
        slots=ints(num_rows),
        q_lens=ints(num_rows),
        seq_lens=ints(num_rows),
        token_ids=ints(7),
        positions=ints(7),
        block_updates=ints(num_updates, 3),
        block_copies=ints(num_updates, 2),
        sample_index=ints(num_rows),
        sample_slots=ints(num_rows),
        sampling=sampling,
    )


def assert_equal(sent: object, received: object, but: frozenset[str] = frozenset()) -> None:
    for field in fields(sent):  # type: ignore[arg-type]  # dataclasses all
        ours, theirs = getattr(sent, field.name), getattr(received, field.name)
        if field.name in but:
            continue
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert theirs.flags.aligned
        elif isinstance(ours, SamplingBatch | SamplingSettings):
            assert_equal(ours, theirs, but)
        else:
            assert ours == theirs


@pytest.mark.parametrize("num_updates", [0, 4])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_batch_arrives_as_it_was_sent(num_rows: int, num_updates: int) -> None:
    batch = make_batch(num_rows, num_updates)
    received = BatchDecoder().decode(BatchEncoder().encode(batch))
    assert_equal(batch, received, frozenset({"num_logprobs"}))
    assert (received.sampling.settings.num_logprobs == -1).all()  # only rank 0 answers


def test_masks_arrive_with_their_words() -> None:
    batch = make_batch()
    masks = KnownMasks(ints(2), ints(2, 5))
    guided = replace(batch, sampling=replace(batch.sampling, masks=masks))
    received = BatchDecoder().decode(BatchEncoder().encode(guided)).sampling.masks
    assert received is not None
    np.testing.assert_array_equal(received.rows, masks.rows)
    np.testing.assert_array_equal(received.words(), masks.words())


def test_settings_are_sent_once_and_are_the_same_object_again() -> None:
    encoder, decoder = BatchEncoder(), BatchDecoder()
    batch = make_batch()
    frames = [encoder.encode(batch), encoder.encode(batch), encoder.encode(make_batch())]
    assert len(frames[1]) < len(frames[0]) == len(frames[2])
    first, second, third = (decoder.decode(frame).sampling.settings for frame in frames)
    assert first is second and second is not third


class Ranks:
    """The other ranks as a list of what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lost: EngineError | None = None

    def send(self, frame: bytes) -> None:
        self.asked.append("send")

    def check(self) -> None:
        if self.lost is not None:
            raise self.lost

    def abort(self) -> None:
        self.asked.append("abort")

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()


class Own:
    """An executor that raises, after `during` has run."""

    max_num_seqs, num_blocks, vocab_size = 4, 8, 100

    def __init__(self, ranks: Ranks, lost: EngineError | None) -> None:
        self._ranks = ranks
        self._lost = lost

    def submit(self, batch: Batch) -> Own:
        self._ranks.lost = self._lost
        raise MemoryError("planted")

    def wait(self) -> StepResult:
        raise AssertionError("never submitted")


def test_a_step_that_fails_here_ends_the_others() -> None:
    ranks = Ranks()
    with pytest.raises(MemoryError, match="planted"):
        RankedExecutor(Own(ranks, None), ranks).submit(make_batch())
    assert ranks.asked == ["send", "abort"]


def test_a_lost_rank_is_the_cause_of_what_fails_with_it() -> None:
    ranks = Ranks()
    lost = EngineError("rank 1 was killed", code=RANK_LOST)
    executor = RankedExecutor(Own(ranks, lost), ranks)
    with pytest.raises(EngineError, match="rank 1 was killed"):
        executor.submit(make_batch())
    with pytest.raises(EngineError, match="rank 1 was killed"):
        executor.submit(make_batch())
    assert ranks.asked == ["send"]
