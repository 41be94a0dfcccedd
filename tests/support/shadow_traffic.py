"""Requests against the shadow executor, and what each of them must answer when it is alone."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np

from hal.engine.batch import Batch
from hal.engine.engine import Engine
from hal.engine.request import Request
from hal.engine.scheduler import SchedulerConfig
from hal.engine.sequence import choice_seed
from hal.engine.shadow_executor import ShadowExecutor, ShadowStep, shadow_token
from hal.sampling_params import SamplingParams

VOCAB_SIZE = 40
EOS = 0
POISON = 39
MAX_MODEL_LEN = 40

CONFIG = SchedulerConfig(
    max_num_seqs=4,
    max_num_batched_tokens=12,
    max_model_len=MAX_MODEL_LEN,
    block_size=4,
    num_blocks=40,
    spare_tokens=0,
)


def make_request(
    request_id: str = "r",
    prompt: tuple[int, ...] = (1, 2, 3),
    priority: int = 0,
    tenant: str = "",
    timeout_s: float | None = None,
    **params: object,
) -> Request:
    """Greedy and 8 tokens unless `params` says otherwise."""
    wanted = {"max_tokens": 8, "temperature": 0.0} | params
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**wanted),  # type: ignore[arg-type]
        eos_token_ids=frozenset({EOS}),
        priority=priority,
        tenant=tenant,
        timeout_s=timeout_s,
    )


class WatchedExecutor(ShadowExecutor):
    """Keeps the batches and checks what every batch promises."""

    def __init__(
        self,
        config: SchedulerConfig,
        poison: int | None = None,
        vocab_size: int = VOCAB_SIZE,
        swap_block_s: float = 0.0,
    ) -> None:
        super().__init__(
            max_num_seqs=config.max_num_seqs,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            max_model_len=config.max_model_len,
            vocab_size=vocab_size,
            window=config.window,
            poison=poison,
            num_swap_blocks=config.num_swap_blocks,
            swap_block_s=swap_block_s,
        )
        self.config = config
        self.batches: list[Batch] = []

    def submit(self, batch: Batch) -> ShadowStep:
        assert 0 < batch.num_tokens <= self.config.max_num_batched_tokens
        assert batch.num_tokens == batch.q_lens.sum()
        assert len(set(batch.slots.tolist())) == batch.num_seqs
        assert len(set(batch.sample_slots.tolist())) == batch.num_samples
        ends = np.cumsum(batch.q_lens) - 1
        assert (batch.positions[ends] == batch.seq_lens - 1).all()
        self.batches.append(batch)
        return super().submit(batch)


def make_engine(
    config: SchedulerConfig, poison: int | None = None
) -> tuple[Engine, WatchedExecutor]:
    executor = WatchedExecutor(config, poison)
    return Engine(config, executor, random.Random(0)), executor


def generate_alone(
    request: Request,
    index: int,
    config: SchedulerConfig,
    vocab_size: int = VOCAB_SIZE,
    poison: int | None = None,
) -> list[int]:
    """The tokens of one choice from its plain history: no blocks, no batch, no scheduler.

    It ends before the token that would be sampled with `poison` in sight.
    """
    params = request.params
    assert params.max_tokens is not None
    seed = 0 if params.is_greedy else choice_seed(params.seed or 0, index)
    history = list(request.prompt_token_ids)
    stops = frozenset(params.stop_token_ids)
    if not params.ignore_eos:
        stops |= request.eos_token_ids
    output: list[int] = []
    while len(output) < params.max_tokens and len(history) < config.max_model_len:
        visible = np.array(history if config.window is None else history[-config.window :])
        if poison is not None and poison in visible:
            break
        banned = stops if len(output) < params.min_tokens else frozenset()
        token_index = 0 if params.is_greedy else len(output)
        token = shadow_token(visible.astype(np.int32), seed, token_index, vocab_size, banned)
        history.append(token)
        output.append(token)
        if token in stops:
            break
    return output


def run_all(engine: Engine, max_steps: int = 2000) -> dict[tuple[str, int], list[int]]:
    """Step until idle; the tokens of each choice."""
    tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
    for _ in range(max_steps):
        if not engine.has_work:
            break
        for output in engine.step():
            tokens[output.request_id, output.index].extend(output.token_ids)
        engine.scheduler.blocks.check()
    assert not engine.has_work, "starved"
    assert engine.stats().num_blocks_used == 0
    return tokens


def expect_all(
    requests: list[Request], config: SchedulerConfig
) -> dict[tuple[str, int], list[int]]:
    return {
        (request.request_id, index): generate_alone(request, index, config)
        for request in requests
        for index in range(request.params.n)
    }
