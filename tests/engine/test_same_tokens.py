"""A real model's tokens do not depend on what memory and scheduling did to a sequence."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.engine import Engine
from hal.engine.request import EngineStats, Request
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.engine.swap_space import SwapCosts
from hal.errors import SelectionError
from hal.sampling_params import SamplingParams

BLOCK_SIZE = 16
MAX_MODEL_LEN = 160
SHARED = tuple(3 + 7 * n % 250 for n in range(70))
"""4 blocks and a part of one, which most prompts start with."""
PROMPTS = [
    SHARED + (9, 8, 7),
    SHARED + tuple(range(20, 44)),
    SHARED,
    tuple(5 + 11 * n % 240 for n in range(50)),
    SHARED[:40] + (100,) * 9,
    SHARED + (200, 201),
]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the workload, and the count in EngineStats that shows it did what it is for.

    preempts: chance in each step that somebody loses all blocks
    """

    shows: str = ""
    preempts: float = 0.0
    is_permuted: bool = False
    settings: dict[str, object] = field(default_factory=dict)


TIGHT: dict[str, object] = {"num_blocks": 17, "spare_tokens": 0}
ARMS = {
    "shared prefixes": Arm("num_prefix_hits"),
    "a tight pool": Arm("num_preemptions", settings=TIGHT),
    "random preemption": Arm("num_preemptions", 0.3),
    "permuted blocks": Arm(is_permuted=True),
    "chunks of 7": Arm(settings={"max_num_batched_tokens": 7}),
    "swapped": Arm("num_swapped_in", 0.3, True, settings={**TIGHT, "num_swap_blocks": 40}),
    "swapped in chunks": Arm(
        "num_swapped_in",
        0.1,
        settings={**TIGHT, "num_swap_blocks": 9, "max_num_batched_tokens": 11},
    ),
}

Tokens = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """tokens: of each choice, with the log probability of each."""

    tokens: Tokens
    stats: EngineStats


class AlwaysCheaper(SwapCosts):
    def is_cheaper(self, num_copies: int) -> bool:
        return True


def build(dtype: str, *, deterministic: bool) -> BuiltEngine:
    return build_engine(
        EngineConfig(
            device="cpu",
            dtype=dtype,
            deterministic=deterministic,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=6,
            enforce_eager=True,
        )
    )


def run(built: BuiltEngine, arm: Arm) -> Answer:
    """The workload on the runner of `built`, with a pool and an engine of its own."""
    rng = random.Random(1)
    config = SchedulerConfig(
        max_num_seqs=6,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        **{"max_num_batched_tokens": 64, "num_blocks": 70, **arm.settings},  # type: ignore[arg-type]  # fields
    )
    built.runner.start(config.num_blocks, config.num_swap_blocks)
    scheduler = Scheduler(config)
    if scheduler.blocks.swap is not None:
        scheduler.blocks.swap._costs = AlwaysCheaper(BLOCK_SIZE)  # whatever this machine measures
    if arm.is_permuted:
        free = scheduler.blocks._free
        free[:] = rng.sample(free.tolist(), len(free))
    engine = Engine(config, built.runner, rng, scheduler=scheduler)
    for number, prompt in enumerate(PROMPTS):
        engine.add(_request(number, prompt))
    tokens: Tokens = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            pairs = zip(output.token_ids, output.logprobs, strict=True)
            tokens[f"{output.request_id} {output.index}"].extend((t, p.logprob) for t, p in pairs)
        running = scheduler.slots.running_by_rank()
        if len(running) > 1 and rng.random() < arm.preempts:
            scheduler._preempt(rng.choice(running))
        scheduler.blocks.check()
    return Answer(tokens, engine.stats())


def _request(number: int, prompt: tuple[int, ...]) -> Request:
    params = SamplingParams(
        temperature=0.0 if number % 2 else 0.8,
        seed=number,
        n=2 if number == 1 else 1,
        max_tokens=24,
        ignore_eos=True,
        logprobs=0,
    )
    return Request(request_id=str(number), prompt_token_ids=prompt, params=params)


def check_arms(built: BuiltEngine) -> Iterator[tuple[str, Tokens, Tokens]]:
    """Each arm's tokens beside those of a run without a cache in which nobody has to leave."""
    plain = run(built, Arm(settings={"prefix_caching": False}))
    assert (plain.stats.num_preemptions, plain.stats.num_prefix_hits) == (0, 0)
    for name, arm in ARMS.items():
        answer = run(built, arm)
        assert not arm.shows or getattr(answer.stats, arm.shows) > 0, (name, arm.shows)
        yield name, answer.tokens, plain.tokens


def test_float32_samples_the_same_tokens_in_every_arm() -> None:
    for name, tokens, expected in check_arms(build("float32", deterministic=False)):
        for choice, pairs in expected.items():
            assert [t for t, _ in tokens[choice]] == [t for t, _ in pairs], (name, choice)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_deterministic_kernels_have_the_same_bits_in_every_arm(dtype: str) -> None:
    try:
        built = build(dtype, deterministic=True)
    except SelectionError as error:
        pytest.skip(str(error))
    for name, tokens, expected in check_arms(built):
        assert tokens == expected, name
