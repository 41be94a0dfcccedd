"""Work lists of attention: every visible key once, within the room for partial results."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hal.kernels.triton.work_list import NOT_SPLIT, Tiling, WorkList, make_work_list

TILING = Tiling(decode_tokens=4, prefill_tokens=16, keys=32, max_partials=64)
SEQUENCES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 5000)).map(lambda s: (s[0], s[0] + s[1])),
    min_size=1,
    max_size=9,
)


def work_of(steps: list[tuple[int, int]], window: int | None) -> WorkList:
    starts = np.cumsum([0, *(q for q, _ in steps)]).astype(np.int32)
    lens = np.array([n for _, n in steps], dtype=np.int32)
    return make_work_list(starts, lens, window, TILING)


@given(SEQUENCES, st.sampled_from([None, 1, 100]))
def test_every_query_meets_every_key_that_it_sees(
    steps: list[tuple[int, int]], window: int | None
) -> None:
    work = work_of(steps, window)
    items = np.concatenate([work.decode, work.prefill]).tolist()
    is_decode = [True] * len(work.decode) + [False] * len(work.prefill)
    for seq, (q_len, seq_len) in enumerate(steps):
        for token in {0, q_len // 2, q_len - 1}:
            position = seq_len - q_len + token
            first = 0 if window is None else max(0, position + 1 - window)
            met = np.zeros(seq_len, dtype=int)
            for (of, first_token, first_key, end_key, _), few in zip(items, is_decode, strict=True):
                num_tokens = TILING.decode_tokens if few else TILING.prefill_tokens
                if of == seq and first_token <= token < first_token + num_tokens:
                    met[first_key:end_key] += 1
            assert (met[first : position + 1] == 1).all()


@given(SEQUENCES)
def test_no_freed_key_is_read(steps: list[tuple[int, int]]) -> None:
    work = work_of(steps, window=10)
    for seq, token, first_key, end_key, _ in np.concatenate([work.decode, work.prefill]).tolist():
        q_len, seq_len = steps[seq]
        assert max(0, seq_len - q_len + token - 9) <= first_key < end_key <= seq_len


@given(SEQUENCES)
def test_partial_results_have_room_and_are_merged_once(steps: list[tuple[int, int]]) -> None:
    work = work_of(steps, window=None)
    partials = work.decode[:, 4]
    used = partials[partials != NOT_SPLIT]
    assert used.tolist() == list(range(len(used))) and len(used) <= TILING.max_partials
    for seq, _, first, end in work.splits.tolist():
        assert (work.decode[np.isin(partials, np.arange(first, end)), 0] == seq).all()
    assert sum(end - first for _, _, first, end in work.splits.tolist()) == len(used)


def test_programs_of_a_skewed_batch_read_equally_much() -> None:
    work = work_of([(1, 100_000), (1, 50), (1, 7), (1, 20_000)], None)
    reads = work.decode[:, 3] - work.decode[:, 2]
    share = reads.max()
    split = work.decode[:, 4] != NOT_SPLIT
    assert (reads[split] == share).sum() >= split.sum() - 2
    assert share < 100_000 / 16


def test_longest_prompts_begin_first() -> None:
    work = work_of([(20, 20), (40, 4000)], None)
    reads = work.prefill[:, 3] - work.prefill[:, 2]
    assert (np.diff(reads) <= 0).all()
