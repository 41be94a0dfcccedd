"""The sampling arrays of a step belong to the right rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shadow_traffic import EOS, make_request

from hal.engine.batch import Index, SampledLogprobs, SamplingBatch
from hal.engine.request import TokenLogprobs
from hal.engine.sampler import NO_LOGPROBS, SamplingState, row_logprobs
from hal.engine.sequence import Sequence, choice_seed, make_sequences


def running(slot: int, state: SamplingState, **params: Any) -> Sequence:
    """A sequence of the prompt (1, 2, 3, 1) in a slot."""
    request = make_request(str(slot), (1, 2, 3, 1), **params)
    seq = make_sequences(request, arrival=slot, seed=100 + slot, max_model_len=99)
    seq.slot = slot
    state.assign(seq)
    return seq


def sample(state: SamplingState, seqs: list[Sequence], tokens: list[int]) -> None:
    state.record(slots_of(seqs), np.array(tokens, np.int32))
    for seq, token in zip(seqs, tokens, strict=True):
        seq.tokens.append(token)


def slots_of(seqs: list[Sequence]) -> Index:
    return np.array([seq.slot for seq in seqs], np.intp)


def build(state: SamplingState, seqs: list[Sequence]) -> SamplingBatch:
    by_slot = {seq.slot: seq for seq in seqs}
    return state.build(slots_of(seqs), [by_slot.get(slot) for slot in range(max(by_slot) + 1)])


def test_every_setting_stands_in_its_row() -> None:
    state = SamplingState(8)
    plain = running(5, state, temperature=0.0)
    rich = running(
        2,
        state,
        temperature=0.5,
        top_k=-1,
        top_p=0.25,
        min_p=0.125,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        repetition_penalty=2.0,
        logprobs=4,
    )
    limited = running(7, state, temperature=1.0, top_k=9, logprobs=0)
    batch = build(state, [plain, rich, limited])
    assert batch.settings.temperature.tolist() == [0.0, 0.5, 1.0]
    assert batch.settings.top_k.tolist() == [0, 0, 9]
    assert batch.settings.top_p.tolist() == [1.0, 0.25, 1.0]
    assert batch.settings.min_p.tolist() == [0.0, 0.125, 0.0]
    assert batch.settings.presence.tolist() == [0.0, 1.5, 0.0]
    assert batch.settings.frequency.tolist() == [0.0, -0.5, 0.0]
    assert batch.settings.repetition.tolist() == [1.0, 2.0, 1.0]
    assert batch.settings.num_logprobs.tolist() == [NO_LOGPROBS, 4, 0]
    assert batch.settings.seeds.tolist() == [105, 102, 107]
    types: dict[str, tuple[NDArray[Any], ...]] = {
        "float32": (
            batch.settings.temperature,
            batch.settings.top_p,
            batch.settings.min_p,
            batch.bias_values,
        ),
        "int32": (batch.settings.top_k, batch.token_index, batch.bias_ids, batch.penalty_counts),
        "uint64": (batch.settings.seeds,),
    }
    assert all(array.dtype == name for name, arrays in types.items() for array in arrays)


def test_settings_are_one_object_until_rows_change() -> None:
    state = SamplingState(4)
    seqs = [running(0, state, temperature=1.0), running(1, state)]
    slots = slots_of(seqs)
    first = state.build(slots, seqs)
    state.record(slots, np.array([7, 8], np.int32))
    second = state.build(slots, seqs)
    assert second.settings is first.settings
    assert (second.token_index - first.token_index).tolist() == [1, 1]
    running(3, state)  # whoever comes may stand in a slot of these rows
    assert state.build(slots, seqs).settings is not first.settings
    assert state.build(slots_of(seqs), seqs).settings is not first.settings


def test_a_reused_slot_keeps_nothing_of_its_last_sequence() -> None:
    state = SamplingState(2)
    old = running(0, state, temperature=1.0, logit_bias={4: 1.0}, presence_penalty=1.0)
    sample(state, [old], [7])
    new = running(0, state, temperature=0.0)
    batch = build(state, [new])
    assert batch.token_index.tolist() == [0]
    assert len(batch.bias_ids) == len(batch.penalty_ids) == 0
    assert batch.settings.presence.tolist() == [0.0]


def test_token_index_counts_output_tokens_also_after_a_preemption() -> None:
    state = SamplingState(4)
    first, second = running(0, state), running(1, state)
    sample(state, [first, second], [5, 6])
    sample(state, [second], [7])
    assert build(state, [second, first]).token_index.tolist() == [2, 1]
    second.slot = 3
    state.assign(second)
    assert build(state, [second]).token_index.tolist() == [2]


def test_stops_are_banned_until_min_tokens() -> None:
    state = SamplingState(4)
    free = running(0, state)
    held = running(3, state, min_tokens=2, stop_token_ids=[8], logit_bias={8: 5.0, 9: -1.0})
    for _ in range(2):
        batch = build(state, [free, held])
        assert batch.bias_rows.tolist() == [1, 1, 1]
        found = dict(zip(batch.bias_ids.tolist(), batch.bias_values.tolist(), strict=True))
        assert found == {EOS: -np.inf, 8: -np.inf, 9: -1.0}, "one entry per token"
        sample(state, [held], [4])
    batch = build(state, [free, held])
    assert (batch.bias_ids.tolist(), batch.bias_values.tolist()) == ([8, 9], [5.0, -1.0])


def test_a_row_without_bias_after_min_tokens_has_no_entries() -> None:
    state = SamplingState(1)
    seq = running(0, state, min_tokens=1)
    assert build(state, [seq]).bias_ids.tolist() == [EOS]
    sample(state, [seq], [4])
    for _ in range(2):
        batch = build(state, [seq])
        assert [len(a) for a in (batch.bias_rows, batch.bias_ids, batch.bias_values)] == [0] * 3


def test_penalties_count_distinct_tokens_of_prompt_and_output() -> None:
    state = SamplingState(4)
    plain = running(0, state)
    seqs = [plain, running(3, state, frequency_penalty=1.0), running(1, state, top_k=1)]
    for tokens in ([1, 2, 3], [4, 2, 5], [4, 6, 5]):
        sample(state, seqs, tokens)
    batch = build(state, seqs)
    assert batch.penalty_rows.tolist() == [1] * 4, "one entry per distinct token"
    counts = dict(zip(batch.penalty_ids.tolist(), batch.penalty_counts.tolist(), strict=True))
    assert counts == {1: 0, 3: 0} | Counter([2, 2, 6])
    state.assign(seqs[1])
    again = build(state, seqs)
    assert again.penalty_ids.tolist() == batch.penalty_ids.tolist()
    assert again.penalty_counts.tolist() == batch.penalty_counts.tolist()


def test_choice_seeds_are_fixed_and_differ() -> None:
    assert choice_seed(5, 0) == 5
    assert choice_seed(-1, 0) == 2**64 - 1
    # SplitMix64 from seed 0: published first outputs.
    assert choice_seed(0, 1) == 0xE220A8397B1DCDAF
    assert choice_seed(0, 2) == 0x6E789E6AA1B965F4
    seeds = {choice_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**64 for seed in seeds)


SAMPLED = SampledLogprobs(
    chosen=np.array([-1.0, -2.0], np.float32),
    rank=np.array([1, 5], np.int32),
    top_ids=np.array([[1, 2, 3], [4, 5, 6]], np.int32),
    top_logprobs=np.array([[-1.0, -1.5, -2.5], [-0.5, -0.75, -1.0]], np.float32),
)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_logprobs_are_cut_to_what_the_request_asked_for(k: int) -> None:
    seq = running(0, SamplingState(1), logprobs=k)
    expected = TokenLogprobs(
        token_id=9,
        logprob=-2.0,
        rank=5,
        top_ids=(4, 5, 6)[:k],
        top_logprobs=(-0.5, -0.75, -1.0)[:k],
    )
    assert row_logprobs(SAMPLED, 1, 9, seq) == (expected,)


def test_no_logprobs_for_whom_did_not_ask() -> None:
    state = SamplingState(2)
    assert row_logprobs(SAMPLED, 1, 9, running(0, state)) == ()
    assert row_logprobs(None, 1, 9, running(1, state, logprobs=3)) == ()
