"""What a decode step of one sequence on a CPU costs besides its kernels.

    PYTHONPATH=.pkg python benchmarks/cpu_host.py --quantization int4

CPU time of a step whose native kernels return at once, so that a busy machine does not count, and
how often threads wait for each other in a step with them. Steps that replay a graph and eager ones
take turns. Each part's time is the least of many steps.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import models
import record

from hal import LLM, SamplingParams
from hal.engine import model_runner, scheduler
from hal.engine.engine import Engine
from hal.engine.model_runner import ModelRunner
from hal.engine.sampler import SamplingState
from hal.engine.step_inputs import DecodeInputs
from hal.engine.token_sampler import PendingTokens, TokenSampler
from hal.kernels.cpu import native

PROMPT_LEN = 32
NUM_STEPS = 200
ARMS = ("graph", "eager")


class Switch:
    """Stands for the native module; its functions do nothing while it is off, nor do replays."""

    def __init__(self, module: ModuleType) -> None:
        self.is_on = True
        functions = {name: getattr(module, name) for name in dir(module) if name[0] != "_"}
        self.module = SimpleNamespace(
            **{n: self._switched(f) if callable(f) else f for n, f in functions.items()}
        )
        self.module.Recording = lambda: SwitchedRecording(self, module.Recording())

    def _switched(self, function: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: function(*arguments) if self.is_on else None


class SwitchedRecording:
    """A Recording whose replays obey the switch."""

    def __init__(self, switch: Switch, recording: Any) -> None:
        self._switch = switch
        self._recording = recording
        self.begin = recording.begin
        self.end = recording.end

    def replay(self, num_threads: int) -> None:
        if self._switch.is_on:
            self._recording.replay(num_threads)


class Parts:
    """The least time of each part of a step: functions that are named once and then watched."""

    def __init__(self) -> None:
        self.least_us: dict[str, float] = {}
        for owner, name, part in PARTS:
            setattr(owner, name, self._watched(getattr(owner, name), part))

    def _watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter_ns()
            result = function(*arguments, **named)
            took = (time.perf_counter_ns() - start) / 1e3
            self.least_us[part] = min(took, self.least_us.get(part, took))
            return result

        return call


PARTS = (
    (Engine, "step", "step"),
    (scheduler.Scheduler, "schedule", "schedule"),
    (scheduler, "build_batch", "  of which build_batch"),
    (SamplingState, "build", "  of which sampling settings"),
    (ModelRunner, "submit", "submit"),
    (model_runner, "upload_inputs", "  of which inputs (eager)"),
    (DecodeInputs, "fill", "  of which inputs (graph)"),
    (ModelRunner, "_plan", "  of which plan"),
    (ModelRunner, "_run", "  of which layers (eager)"),
    (TokenSampler, "run", "  of which sampling"),
    (PendingTokens, "wait", "wait"),
    (scheduler.Scheduler, "update", "update"),
)


def generate(llm: LLM, prompt: tuple[int, ...], num_tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    llm.generate([prompt], params, use_tqdm=False)


def step_us(llm: LLM, prompt: tuple[int, ...]) -> float:
    """Of one decode step: a long run less a run of its prompt alone."""
    seconds = []
    for num_tokens in (1, NUM_STEPS + 1):
        start = time.process_time()
        generate(llm, prompt, num_tokens)
        seconds.append(time.process_time() - start)
    return (seconds[1] - seconds[0]) / NUM_STEPS * 1e6


def step_barriers(llm: LLM, prompt: tuple[int, ...], module: ModuleType) -> float:
    counts = [module.num_barriers()]
    for num_tokens in (1, NUM_STEPS + 1):
        generate(llm, prompt, num_tokens)
        counts.append(module.num_barriers())
    return float(counts[2] - 2 * counts[1] + counts[0]) / NUM_STEPS


def make_llm(folder: Path, quantization: str, enforce_eager: bool) -> LLM:
    return LLM(
        str(folder),
        device="cpu",
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=1,
        quantization=quantization,
        threads=2,  # one waits for nobody
        enable_prefix_caching=False,
        enforce_eager=enforce_eager,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=models.SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--models", type=Path, default=Path("/tmp/hal-models"))
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    module = native.load()
    switch = Switch(module)
    native.load = lambda: switch.module  # type: ignore[assignment]  # one that is not cached
    folder = models.make_model(options.model, options.models)
    engines = {name: make_llm(folder, options.quantization, name == "eager") for name in ARMS}
    vocab_size = models.SHAPES[options.model].vocab_size
    prompt = tuple(random.Random(1).randrange(2, vocab_size) for _ in range(PROMPT_LEN))
    barriers = step_barriers(engines["graph"], prompt, module)
    switch.is_on = False
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(options.rounds):
        for name, llm in engines.items():
            times[name].append(step_us(llm, prompt))
    host = {name: record.spread(values) for name, values in times.items()}
    parts = Parts()
    shares = {}
    for name, llm in engines.items():
        parts.least_us.clear()
        generate(llm, prompt, NUM_STEPS)
        shares[name] = dict(parts.least_us)
    report = {**record.header("cpu_host"), "quantization": options.quantization}
    record.write(
        record.RESULTS / f"cpu_host-{options.model}.json",
        {
            **report,
            "host_us": {name: asdict(spread) for name, spread in host.items()},
            "parts_least_us": shares,
            "barriers_per_step": barriers,
        },
    )
    for name, spread in host.items():
        sys.stdout.write(f"{name}: host {spread.median:.0f} us a step ")
        sys.stdout.write(f"(least {spread.lowest:.0f}), {barriers:.0f} waits\n")
        for _, _, part in PARTS:
            if part in shares[name]:
                sys.stdout.write(f"  {part:32} {shares[name][part]:6.1f} us\n")


if __name__ == "__main__":
    main()
