"""Steps of the scheduler without a model: what one costs, and beside nano-vllm's scheduler."""

from __future__ import annotations

import importlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from hal.engine.batch import Batch, StepResult
from hal.engine.engine import Engine
from hal.engine.request import Request
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.sampling_params import SamplingParams

BLOCK_SIZE = 16
PROMPT_LEN = 48
MAX_TOKENS = 2000
STEPS_PER_ROUND = 2 * BLOCK_SIZE  # every sequence crosses as many block boundaries in each

CASES = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS),
    "sampled": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, max_tokens=MAX_TOKENS),
    "penalties": SamplingParams(frequency_penalty=0.5, max_tokens=MAX_TOKENS),
}


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

    def __init__(self, config: SchedulerConfig) -> None:
        self.max_num_seqs = config.max_num_seqs
        self.num_blocks = config.num_blocks
        self._steps: dict[int, InstantStep] = {}

    def submit(self, batch: Batch) -> InstantStep:
        num_rows = batch.num_samples
        if num_rows not in self._steps:
            self._steps[num_rows] = InstantStep(num_rows)
        return self._steps[num_rows]


def make_prompts(num_seqs: int) -> list[tuple[int, ...]]:
    """Ragged, so that block boundaries fall on different steps."""
    rng = np.random.default_rng(0)
    lengths = PROMPT_LEN - rng.integers(0, BLOCK_SIZE, num_seqs)
    return [tuple(rng.integers(2, 1000, length).tolist()) for length in lengths]


def make_config(num_seqs: int, *, prefix_caching: bool = True) -> SchedulerConfig:
    max_model_len = PROMPT_LEN + MAX_TOKENS
    return SchedulerConfig(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_seqs * PROMPT_LEN,
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
        num_blocks=num_seqs * 32 + max_model_len // BLOCK_SIZE + 1,  # more than the rounds use
        prefix_caching=prefix_caching,
    )


class OurSteps:
    """`num_seqs` sequences that decode; a step gives arrays, not yet one object per token."""

    def __init__(self, num_seqs: int, *, prefix_caching: bool = True) -> None:
        config = make_config(num_seqs, prefix_caching=prefix_caching)
        self._scheduler = Scheduler(config)
        self._executor = InstantExecutor(config)
        for number, prompt in enumerate(make_prompts(num_seqs)):
            request = Request(
                request_id=str(number), prompt_token_ids=prompt, params=CASES["greedy"]
            )
            self._scheduler.add(request, seed=0)
        self.step()
        assert self._scheduler.num_running == num_seqs

    def step(self) -> None:
        batch = self._scheduler.schedule()
        assert batch is not None
        self._scheduler.update(batch, self._executor.submit(batch).wait())


class EngineSteps:
    """The same through the engine: with an Output for every token."""

    def __init__(self, num_seqs: int, params: SamplingParams) -> None:
        config = make_config(num_seqs)
        self._engine = Engine(config, InstantExecutor(config), random.Random(0))
        for number, prompt in enumerate(make_prompts(num_seqs)):
            self._engine.add(
                Request(request_id=str(number), prompt_token_ids=prompt, params=params)
            )
        self.step()

    def step(self) -> None:
        self._engine.step()


class NanoSteps:
    """nano-vllm's scheduler and block manager on the same prompts and blocks of the same size."""

    def __init__(self, num_seqs: int, folder: Path) -> None:
        self._modules = _nano_modules(folder)
        config = make_config(num_seqs)
        limits = SimpleNamespace(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            eos=-1,
            kvcache_block_size=BLOCK_SIZE,
            num_kvcache_blocks=config.num_blocks,
        )
        self._modules["sequence"].Sequence.block_size = BLOCK_SIZE
        params = self._modules["sampling_params"].SamplingParams(max_tokens=MAX_TOKENS)
        self._scheduler = self._modules["scheduler"].Scheduler(limits)
        for prompt in make_prompts(num_seqs):
            self._scheduler.add(self._modules["sequence"].Sequence(list(prompt), params))
        while self._scheduler.waiting:
            self.step()

    def step(self) -> None:
        seqs, is_prefill = self._scheduler.schedule()
        self._scheduler.postprocess(seqs, [1] * len(seqs), is_prefill)


def _nano_modules(folder: Path) -> dict[str, ModuleType]:
    """Its parts that need no GPU; the package itself would import kernels."""
    package = folder / "nanovllm"
    if not (package / "engine" / "scheduler.py").exists():
        raise FileNotFoundError(f"{folder} is no checkout of nano-vllm: no engine/scheduler.py")
    stub = ModuleType("nanovllm")
    stub.__path__ = [str(package)]
    sys.modules["nanovllm"] = stub
    names = ("sampling_params", "engine.sequence", "engine.scheduler")
    return {name.split(".")[-1]: importlib.import_module(f"nanovllm.{name}") for name in names}


def step_us(arms: list[Callable[[], None]], num_seqs: int, rounds: int) -> list[list[float]]:
    """Of each arm, microseconds of CPU time per sequence and step; arms take turns."""
    samples: list[list[float]] = [[] for _ in arms]
    for _ in range(1 + rounds):
        for step, found in zip(arms, samples, strict=True):
            start = time.thread_time_ns()
            for _ in range(STEPS_PER_ROUND):
                step()
            elapsed_us = (time.thread_time_ns() - start) / 1e3
            found.append(elapsed_us / STEPS_PER_ROUND / num_seqs)
    return [found[1:] for found in samples]
