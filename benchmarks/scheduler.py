"""Host cost of one running sequence in one step of steady decode, without any executor.

Scheduler, block manager, sampling arrays and outputs together. CPU time of the one thread, so
that a busy machine does not count:

    PYTHONPATH=.pkg python benchmarks/scheduler.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import record

from hal.engine.batch import Batch, StepResult
from hal.engine.engine import Engine
from hal.engine.request import Request
from hal.engine.scheduler import SchedulerConfig
from hal.sampling_params import SamplingParams

NUM_SEQS = (64, 256, 1024)
PROMPT_LEN = 128
BLOCK_SIZE = 16
STEPS_PER_ROUND = 8 * BLOCK_SIZE  # every sequence crosses as many block boundaries in each
NUM_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Row:
    """Microseconds of CPU time per running sequence and step; median and range of the rounds."""

    num_seqs: int
    case: str
    median_us: float
    lowest_us: float
    highest_us: float


class InstantStep:
    """Every row samples token 1."""

    def __init__(self, num_rows: int) -> None:
        self._result = StepResult(
            token_ids=np.ones((num_rows, 1), np.int32),
            num_tokens=np.ones(num_rows, np.int32),
            row_errors=np.zeros(num_rows, np.bool_),
        )

    def wait(self) -> StepResult:
        return self._result


class InstantExecutor:
    """Answers at once with what it made before: its own cost stays below 1 us a step."""

    vocab_size = 1000

    def __init__(self, max_num_seqs: int, num_blocks: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.num_blocks = num_blocks
        self._steps: dict[int, InstantStep] = {}

    def submit(self, batch: Batch) -> InstantStep:
        num_rows = batch.num_samples
        if num_rows not in self._steps:
            self._steps[num_rows] = InstantStep(num_rows)
        return self._steps[num_rows]


CASES = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=4000),
    "sampled": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, max_tokens=4000),
    "penalties": SamplingParams(frequency_penalty=0.5, max_tokens=4000),
}


def make_engine(num_seqs: int, params: SamplingParams) -> Engine:
    """An engine in which `num_seqs` sequences of random prompts decode."""
    rng = random.Random(0)
    max_model_len = PROMPT_LEN + 4000
    num_blocks = num_seqs * (max_model_len // BLOCK_SIZE + 1) + 1
    config = SchedulerConfig(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_seqs * PROMPT_LEN,
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
    )
    engine = Engine(config, InstantExecutor(num_seqs, num_blocks), rng)
    for number in range(num_seqs):
        # Ragged, so that block boundaries fall on different steps.
        length = PROMPT_LEN - rng.randrange(BLOCK_SIZE)
        prompt = tuple(rng.randrange(2, 1000) for _ in range(length))
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, params=params))
    engine.step()
    assert engine.stats().num_running == num_seqs
    return engine


def measure(num_seqs: int, case: str) -> Row:
    engine = make_engine(num_seqs, CASES[case])
    rounds = []
    for _ in range(1 + NUM_ROUNDS):
        start = time.thread_time_ns()
        for _ in range(STEPS_PER_ROUND):
            engine.step()
        elapsed_us = (time.thread_time_ns() - start) / 1e3
        rounds.append(round(elapsed_us / STEPS_PER_ROUND / num_seqs, 3))
    warm = rounds[1:]
    assert engine.stats().num_running == num_seqs
    return Row(num_seqs, case, statistics.median(warm), min(warm), max(warm))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "scheduler.json")
    out = parser.parse_args().out
    rows = [measure(num_seqs, case) for case in CASES for num_seqs in NUM_SEQS]
    report = {
        **record.header("scheduler"),
        "prompt_len": PROMPT_LEN,
        "block_size": BLOCK_SIZE,
        "steps_per_round": STEPS_PER_ROUND,
        "rounds": NUM_ROUNDS,
        "rows": [asdict(row) for row in rows],
    }
    record.write(out, report)
    for row in rows:
        print(
            f"{row.case:10} {row.num_seqs:5} sequences: {row.median_us:.2f} us per sequence and "
            f"step ({row.lowest_us:.2f} to {row.highest_us:.2f})"
        )


if __name__ == "__main__":
    main()
