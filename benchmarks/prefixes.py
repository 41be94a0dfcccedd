"""Time to the first token of a prompt that is new, cached, or in the swap space.

    PYTHONPATH=.pkg python benchmarks/prefixes.py --model qwen2.5-0.5b

Requests run one at a time and the three take turns. A prompt is a system prompt of its own and a
short question: first new, then cached with another question; by the time it is asked again, other
prompts have evicted it. Fails if a cached one takes more than a quarter of a new one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import models
import record

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.engine import Engine
from hal.engine.request import Request
from hal.engine.scheduler import SchedulerConfig
from hal.sampling_params import SamplingParams

BLOCK_SIZE = 16
QUESTION = 8
DELAY = 4
"""Prompts between the first and the last request for one: more than the pool holds."""
LIMIT = 0.25


def make_engine(built: BuiltEngine, prefix: int) -> Engine:
    """A pool of two prompts, and a swap space of all that are asked again."""
    blocks = -(-(prefix + 2 * QUESTION) // BLOCK_SIZE)
    config = SchedulerConfig(
        max_num_seqs=4,
        max_num_batched_tokens=2048,
        max_model_len=2048,
        block_size=BLOCK_SIZE,
        num_blocks=2 * blocks + 1,
        num_swap_blocks=2 * DELAY * blocks,
    )
    built.runner.start(config.num_blocks, config.num_swap_blocks)
    built.runner.warm_up()
    return Engine(config, built.runner, random.Random(0))


class Asker:
    """Sends requests one after another to an engine that has nothing else to do."""

    def __init__(self, engine: Engine, rng: random.Random, vocab_size: int) -> None:
        self.engine = engine
        self._rng = rng
        self._vocab_size = vocab_size
        self._num_requests = 0

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(2, self._vocab_size) for _ in range(count))

    def ttft_s(self, prefix: tuple[int, ...]) -> float:
        """Of the prefix with a new question."""
        self._num_requests += 1
        request = Request(
            request_id=str(self._num_requests),
            prompt_token_ids=prefix + self.tokens(QUESTION),
            params=SamplingParams(temperature=0.0, max_tokens=1),
        )
        began = time.perf_counter()
        self.engine.add(request)
        while not any(output.token_ids for output in self.engine.step()):
            pass
        return time.perf_counter() - began


def measure(asker: Asker, prefix: int, requests: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"new": [], "cached": [], "swapped": []}
    prompts: list[tuple[int, ...]] = []
    for number in range(requests + DELAY):
        prompts.append(asker.tokens(prefix))
        new, cached = asker.ttft_s(prompts[-1]), asker.ttft_s(prompts[-1])
        if number < DELAY:
            continue
        before = asker.engine.stats().num_swapped_in
        swapped = asker.ttft_s(prompts[number - DELAY])
        is_restored = asker.engine.stats().num_swapped_in - before >= prefix // BLOCK_SIZE
        seconds["new"].append(new)
        seconds["cached"].append(cached)
        if is_restored:  # else this machine had computed it faster
            seconds["swapped"].append(swapped)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=models.SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--models", type=Path, default=Path("/tmp/hal-models"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prefix", type=int, default=512, help="tokens of a system prompt")
    parser.add_argument("--requests", type=int, default=64)
    options = parser.parse_args()
    folder = models.make_model(options.model, options.models)
    built = build_engine(EngineConfig(model=str(folder), device=options.device, max_model_len=2048))
    engine = make_engine(built, options.prefix)
    asker = Asker(engine, random.Random(1), built.model.vocab_size)
    seconds = measure(asker, options.prefix, options.requests)
    medians = {name: statistics.median(found) for name, found in seconds.items() if found}
    ratios = {name: round(median / medians["new"], 4) for name, median in medians.items()}
    report: dict[str, object] = {
        **record.header("prefixes"),
        "model": options.model,
        "dtype": str(built.resolved.dtype),
        "device": built.device.capabilities.name,
        "prefix_tokens": options.prefix,
        "ttft_s": {name: asdict(record.spread(found)) for name, found in seconds.items() if found},
        "of_new": ratios,
        "swapped_blocks": {
            "out": engine.stats().num_swapped_out,
            "in": engine.stats().num_swapped_in,
        },
    }
    record.write(record.RESULTS / f"prefixes-{options.model}.json", report)
    for name, median in medians.items():
        sys.stdout.write(f"{name:<8} {median * 1e3:8.2f} ms  {ratios[name]:.3f} of a new prompt\n")
    return 0 if ratios["cached"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
