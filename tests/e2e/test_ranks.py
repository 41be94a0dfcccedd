"""Several ranks as real processes: the same answers as one, and no end of a rank goes unnoticed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from fake_serving import ROOT, TIMEOUT_S, children_of, is_alive, open_request, serving, wait_for

from hal import LLM, SamplingParams
from hal.engine.weights import CheckpointReader
from hal.errors import RANK_LOST, EngineError
from hal.ranks.interrupts import interrupt_afterwards

PROMPTS = ["12 + 30 =", "7 + 5 =", "the first of all"]
SETTINGS = {"dtype": "float32", "max_num_seqs": 4, "max_model_len": 256}
LIMITS = ("--max-model-len", "256", "--max-num-seqs", "4", "--dtype", "float32")
TWO = ("hal-tiny", "--tensor-parallel-size", "2", *LIMITS)

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
OTHERS = (
    SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=24, repetition_penalty=1.3, logit_bias={7: 2.0}),
    SamplingParams(temperature=0.0, max_tokens=8, logprobs=3, n=2, ignore_eos=True),
)

Answers = list[list[list[int]]]


def answers(llm: LLM, params: Sequence[SamplingParams]) -> Answers:
    results = [llm.generate(PROMPTS, each, use_tqdm=False) for each in params]
    return [[list(c.token_ids) for r in result for c in r.outputs] for result in results]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[LLM]:
    with LLM("hal-tiny", tensor_parallel_size=2, show_progress=False, **SETTINGS) as llm:
        yield llm


def pids(llm: LLM) -> tuple[int, ...]:
    group = llm._open().built.group
    assert group is not None
    return group.pids


def test_the_same_answers_as_one_rank(two_ranks: LLM) -> None:
    with LLM("hal-tiny", show_progress=False, **SETTINGS) as one:
        expected = answers(one, (GREEDY, *OTHERS))
        whole = one.embed(PROMPTS, pooling="mean")
    assert answers(two_ranks, (GREEDY, *OTHERS)) == expected
    for ours, theirs in zip(two_ranks.embed(PROMPTS, pooling="mean"), whole, strict=True):
        np.testing.assert_allclose(ours.outputs.embedding, theirs.outputs.embedding, atol=1e-6)


def test_the_report_names_ranks_collective_and_shares(two_ranks: LLM) -> None:
    explained = two_ranks.explain()
    device, choices = explained["device"], explained["choices"]
    assert isinstance(device, dict) and isinstance(choices, list)
    assert device["ranks"] == 2
    found = {choice["name"]: choice for choice in choices}
    assert found["collective"]["value"] == device["collective"]
    assert found["tensor_parallel_size"]["value"] == "2"
    assert two_ranks.plan.communicator_bytes > 0 or device["collective"] == "gloo"
    (other,) = two_ranks._open().built.others
    assert explained["other_ranks"] == [
        {"weights_bytes": other.weights_bytes, "read_bytes": other.read_bytes}
    ]
    assert other.weights_bytes <= two_ranks.plan.weights_bytes, "the plan is for every rank"
    with CheckpointReader(two_ranks._open().built.folder) as reader:
        assert reader.total_bytes / 2 < other.read_bytes < 0.51 * reader.total_bytes


def test_an_interrupt_waits_for_the_end_of_a_step() -> None:
    within = []
    with pytest.raises(KeyboardInterrupt), interrupt_afterwards():
        os.kill(os.getpid(), signal.SIGINT)
        within.append("went on")
    assert within == ["went on"]


def test_ctrl_c_between_steps_leaves_the_ranks_in_step(two_ranks: LLM) -> None:
    before = answers(two_ranks, [GREEDY])
    stream = two_ranks.stream(PROMPTS[0], GREEDY)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            os.kill(os.getpid(), signal.SIGINT)
    assert answers(two_ranks, [GREEDY]) == before


def test_a_killed_rank_is_a_typed_error_and_the_group_is_gone(two_ranks: LLM) -> None:
    (rank,) = pids(two_ranks)
    stream = two_ranks.stream(PROMPTS[0], SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    os.kill(rank, signal.SIGKILL)
    with pytest.raises(EngineError, match=rf"rank 1 \(pid {rank}\) was killed by SIGKILL") as lost:
        list(stream)
    assert lost.value.code == RANK_LOST
    with pytest.raises(EngineError, match=f"pid {rank}") as again:
        two_ranks.generate(PROMPTS, GREEDY)
    assert again.value.code == RANK_LOST
    assert not is_alive(rank)


def test_gloo_serves_where_it_is_asked_for_and_notices_a_death() -> None:
    with LLM("hal-tiny", show_progress=False, **SETTINGS) as one:
        expected = answers(one, [GREEDY])
    settings = {**SETTINGS, "tensor_parallel_size": 2, "collective": "gloo"}
    with LLM("hal-tiny", show_progress=False, **settings) as llm:
        assert answers(llm, [GREEDY]) == expected
        (rank,) = pids(llm)
        os.kill(rank, signal.SIGKILL)
        with pytest.raises(EngineError, match="rank 1") as lost:
            llm.generate(PROMPTS, GREEDY)
        assert lost.value.code == RANK_LOST


def test_a_closed_engine_leaves_no_rank() -> None:
    """Also where it was made in a thread that ended meanwhile."""
    made: list[LLM] = []
    settings = {**SETTINGS, "tensor_parallel_size": 2}
    thread = threading.Thread(
        target=lambda: made.append(LLM("hal-tiny", show_progress=False, **settings))
    )
    thread.start()
    thread.join()
    (llm,) = made
    (rank,) = pids(llm)
    assert len(llm.generate(PROMPTS, GREEDY)) == len(PROMPTS)
    llm.close()
    assert not is_alive(rank)


def test_a_rank_that_stops_is_lost_after_the_limit_and_ended() -> None:
    settings = {**SETTINGS, "tensor_parallel_size": 2}
    with LLM("hal-tiny", show_progress=False, **settings) as llm:
        (rank,) = pids(llm)
        llm._open().built.collective.limit_waits(0.2)
        os.kill(rank, signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"rank 1 did not arrive within 0\.2 s") as lost:
            llm.generate(PROMPTS, GREEDY)
        assert lost.value.code == RANK_LOST
        assert not is_alive(rank)


def test_a_server_fails_its_requests_and_ends_when_a_rank_dies() -> None:
    """One that is idle ends too: tests/e2e/test_error_codes.py."""
    with serving([*TWO]) as server:
        server.wait_ready()
        engine = server.engine_pid()
        (rank,) = children_of(engine)
        body = {"prompt": "hi", "max_tokens": 240, "stream": True, "ignore_eos": True}
        with open_request(server, "/v1/completions", body) as client:
            received = client.recv(1 << 16)
            os.kill(rank, signal.SIGKILL)
            while part := client.recv(1 << 16):
                received += part
        assert b'"engine_unavailable"' in received
        assert server.wait() == 6
        last = rf"hal-serve: {RANK_LOST}: (step \d+ failed: .*)?rank 1 \(pid {rank}\) was killed"
        assert re.match(last, server.error_lines[-1])
        assert not is_alive(engine) and not is_alive(rank)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ranks_end_with_rank_0(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*(sys.executable, "-P", "-m", "hal.cli.run", *TWO), "--prompt", "hi", "--max-tokens"]
        + ["240"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) != "", "it streams"
    (rank,) = children_of(process.pid)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    wait_for(lambda: not is_alive(rank))
    assert "Traceback" not in stderr


def test_a_size_that_does_not_divide_ends_hal_run_with_the_legal_ones() -> None:
    done = subprocess.run(
        [*(sys.executable, "-P", "-m", "hal.cli.run"), "--tensor-parallel-size=3", "--prompt", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    legal = r"hal-run: HAL-E100: .* 3 does not divide 4 attention heads\. Legal sizes: 1, 2, 4"
    assert re.fullmatch(legal, done.stderr.rstrip().splitlines()[-1])
