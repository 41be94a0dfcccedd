"""Whole workloads on a null device whose step costs were measured: how well the pool is used."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import numpy as np
import record
from host_steps import InstantExecutor

from hal.engine.engine import Engine
from hal.engine.request import Request
from hal.engine.scheduler import SchedulerConfig
from hal.sampling_params import SamplingParams

BLOCK_SIZE = 16
MAX_LEN = 2048
STEP_COSTS = "cpu_engine-qwen2.5-0.5b.json"


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of one step: fixed_s, and token_s for each token in it."""

    fixed_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Length:
    prompt: int
    output: int


def measured_costs() -> StepCosts:
    """Of Qwen2.5 0.5B on a CPU, from benchmarks/results: one sequence's decode, and a prefill."""
    rows = json.loads((record.RESULTS / STEP_COSTS).read_text())["rows"]
    cases = {row["case"]: row for row in rows}
    prefill, decode = cases["prefill-1024"], cases["decode-1"]
    token_s = prefill["our_seconds"]["median"] / prefill["prompt_tokens"]
    step_s = decode["our_seconds"]["median"] / decode["output_tokens"]
    return StepCosts(max(step_s - token_s, 0.0), token_s)


def sharegpt_like(count: int) -> list[Length]:
    """Lognormal, 200 prompt and 190 output tokens on average, sigma 1, at most MAX_LEN together."""
    rng = np.random.default_rng(0)
    draws = rng.lognormal(-0.5, 1.0, (count, 2)) * (200, 190)
    lengths = draws.astype(int).clip(1, MAX_LEN // 2 - 1).tolist()
    return [Length(prompt, output) for prompt, output in lengths]


@dataclass(slots=True)
class Run:
    """Totals of one workload: device seconds and tokens, and the pool's slots over all steps."""

    device_s: float = 0.0
    num_tokens: int = 0
    num_preemptions: int = 0
    live_slots: int = 0
    allocated_slots: int = 0

    @property
    def occupancy(self) -> float:
        return self.live_slots / self.allocated_slots


def run(lengths: list[Length], num_blocks: int, max_num_seqs: int, costs: StepCosts) -> Run:
    """Everything queued at the start, until all is done."""
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=MAX_LEN,
        max_model_len=MAX_LEN,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
    )
    executor = InstantExecutor(config)
    engine = Engine(config, executor, random.Random(0))
    rng = np.random.default_rng(1)
    for number, length in enumerate(lengths):
        prompt = tuple(rng.integers(2, 1000, length.prompt).tolist())
        params = SamplingParams(temperature=0.0, max_tokens=length.output)
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, params=params))
    totals, scheduler = Run(), engine.scheduler
    while scheduler.has_work:
        batch = scheduler.schedule()
        assert batch is not None
        totals.device_s += costs.fixed_s + costs.token_s * batch.num_tokens
        totals.num_tokens += batch.num_samples
        totals.live_slots += int(scheduler.slots.num_computed[batch.slots].sum()) + batch.num_tokens
        totals.allocated_slots += scheduler.blocks.num_used * BLOCK_SIZE
        scheduler.update(batch, executor.submit(batch).wait())
    totals.num_preemptions = scheduler.num_preemptions
    return totals


def occupancy(num_requests: int) -> float:
    """Slots that hold a token, of all slots of the blocks that sequences hold."""
    lengths = sharegpt_like(num_requests)
    return run(lengths, 100_000, 256, measured_costs()).occupancy


@dataclass(frozen=True, slots=True)
class Overcommit:
    """Throughput with half the blocks that the live set needs, of that with enough."""

    ratio: float
    num_preemptions: int


def overcommit(num_requests: int, num_seqs: int) -> Overcommit:
    lengths, costs = sharegpt_like(num_requests), measured_costs()
    roomy = run(lengths, 100_000, num_seqs, costs)
    mean = sum(length.prompt + length.output / 2 for length in lengths) / num_requests
    # The live set: num_seqs sequences half way through; half of that is 2 x overcommit.
    tight = run(lengths, int(num_seqs * mean / BLOCK_SIZE / 2), num_seqs, costs)
    assert tight.num_tokens == roomy.num_tokens
    return Overcommit(roomy.device_s / tight.device_s, tight.num_preemptions)
