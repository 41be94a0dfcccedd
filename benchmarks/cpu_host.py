"""What a decode step of one sequence on a CPU costs besides its kernels.

    PYTHONPATH=.pkg python benchmarks/cpu_host.py --quantization int4

CPU time of a step whose native kernels return at once, so that a busy machine does not count, and
how often threads wait for each other in a step with them.
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

import models
import record

from hal import LLM, SamplingParams
from hal.kernels.cpu import native

PROMPT_LEN = 32
NUM_STEPS = 200


class Switch:
    """Stands for the native module; its functions do nothing while it is off."""

    def __init__(self, module: ModuleType) -> None:
        self.is_on = True
        functions = {name: getattr(module, name) for name in dir(module) if name[0] != "_"}
        self.module = SimpleNamespace(
            **{n: self._switched(f) if callable(f) else f for n, f in functions.items()}
        )

    def _switched(self, function: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: function(*arguments) if self.is_on else None


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
    llm = LLM(
        str(folder),
        device="cpu",
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=1,
        quantization=options.quantization,
        threads=2,  # one waits for nobody
        enable_prefix_caching=False,
    )
    vocab_size = models.SHAPES[options.model].vocab_size
    prompt = tuple(random.Random(1).randrange(2, vocab_size) for _ in range(PROMPT_LEN))
    barriers = step_barriers(llm, prompt, module)
    switch.is_on = False
    host = record.spread([step_us(llm, prompt) for _ in range(options.rounds)])
    report = {**record.header("cpu_host"), "quantization": options.quantization}
    record.write(
        record.RESULTS / f"cpu_host-{options.model}.json",
        {**report, "host_us": asdict(host), "barriers_per_step": barriers},
    )
    sys.stdout.write(f"host {host.median:.0f} us a step (least {host.lowest:.0f}), ")
    sys.stdout.write(f"{barriers:.0f} waits\n")


if __name__ == "__main__":
    main()
