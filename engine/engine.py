"""The engine: requests in, one step after another, new tokens out. Single-threaded."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hal.engine.batch import Batch
from hal.engine.executor import Executor
from hal.engine.grammar import Grammar, Grammars
from hal.engine.prefix_cache import EvictionReason
from hal.engine.request import EngineStats, Output, Request
from hal.engine.scheduler import Scheduler, SchedulerConfig
from hal.engine.step_trace import StepTrace
from hal.errors import (
    RANK_LOST,
    ConfigError,
    EngineError,
    HalError,
    RequestError,
    UnsupportedError,
)


class Engine:
    """Owns a scheduler and drives an executor.

    rng gives seeds to requests without one; grammars compiles for guided ones; scheduler: one of
    `config`, given by simulations with their own clock and faults.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor,
        rng: random.Random,
        grammars: Grammars | None = None,
        scheduler: Scheduler | None = None,
        trace: StepTrace | None = None,
    ) -> None:
        _check_capacity(config, executor)
        self.scheduler = Scheduler(config) if scheduler is None else scheduler
        self._executor = executor
        self._trace = trace
        self._rng = rng
        self._grammars = grammars
        self._undelivered: list[Output] = []
        self._num_prompt_tokens = 0

    def prepare(self, request: Request) -> None:
        """What takes long of `add`, from any thread: compiling a grammar. Raises what add does."""
        self._grammar(request)

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError or ContextLengthError; others are unharmed.

        A guided one that was not prepared is compiled here, which may take seconds.
        """
        _check_token_ids(request, self._executor.vocab_size)
        seed = request.params.seed
        grammar = self._grammar(request)
        self.scheduler.add(request, self._rng.getrandbits(64) if seed is None else seed, grammar)
        self._num_prompt_tokens += len(request.prompt_token_ids)

    def abort(self, request_id: str, index: int | None = None) -> list[Output]:
        """End a request now; returns the last output of each choice, none if it is not here.

        With `index`, only that choice, once it has had a token: its stop string was found.
        """
        return self.scheduler.abort(request_id, index)

    def pin(self, name: str, token_ids: Sequence[int], tenant: str = "") -> int:
        """Keep the blocks of a prompt that ran; returns the tokens kept. See Scheduler.pin."""
        return self.scheduler.pin(name, token_ids, tenant)

    def unpin(self, name: str) -> None:
        """Raises RequestError if there is no such pin."""
        self.scheduler.unpin(name)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._undelivered)

    def step(self) -> list[Output]:
        """Run one step. If it fails: EngineError with the code of the cause, and the next call
        returns whom it ended."""
        if self._undelivered:
            outputs, self._undelivered = self._undelivered, []
            return outputs
        late: list[Output] = []
        try:
            batch = self.scheduler.schedule()
            late = self.scheduler.take_late()
            if batch is None:
                return late
            return late + self._run(batch)
        except BaseException as error:  # Ctrl-C too must leave no block behind
            if not self.scheduler.is_in_flight:
                raise
            message = error.message if isinstance(error, HalError) else str(error)
            code = error.code if isinstance(error, HalError) else EngineError.code
            reason = f"step {self.scheduler.num_steps} failed: {type(error).__name__}: {message}"
            failed = self.scheduler.fail(reason, code)
            self._undelivered = late + failed
            if isinstance(error, Exception):
                others = "the engine cannot go on" if code == RANK_LOST else "others go on"
                ended = f"Its {len(failed)} sequences ended; {others}"
                raise EngineError(f"{reason}. {ended}", code=code) from error
            raise

    def _run(self, batch: Batch) -> list[Output]:
        if self._trace is not None:
            self._trace.begin(batch, self.scheduler)
        result = self._executor.submit(batch).wait()
        outputs = self.scheduler.update(batch, result).outputs()
        if self._trace is not None:
            self._trace.end()
        return outputs

    def _grammar(self, request: Request) -> Grammar | None:
        guided = request.params.guided_decoding
        if guided is None:
            return None
        if self._grammars is None:
            raise UnsupportedError("guided decoding: this engine was built without a tokenizer")
        return self._grammars.compiled(guided)

    def stats(self) -> EngineStats:
        scheduler, swap = self.scheduler, self.scheduler.blocks.swap
        return EngineStats(
            num_steps=scheduler.num_steps,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_blocks_total=scheduler.blocks.num_usable,
            num_blocks_used=scheduler.blocks.num_used,
            num_blocks_pinned=scheduler.blocks.num_only_pinned,
            num_pins=scheduler.blocks.num_pins,
            num_blocks_cached=scheduler.blocks.num_cached,
            num_evicted=scheduler.blocks.evictions[EvictionReason.CAPACITY],
            num_expired=scheduler.blocks.evictions[EvictionReason.EXPIRED],
            num_preemptions=scheduler.num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=scheduler.num_generated_tokens,
            num_prefix_queries=scheduler.num_prefix_queries,
            num_prefix_hits=scheduler.num_prefix_hits,
            num_late=scheduler.num_late,
            num_swap_blocks_total=0 if swap is None else swap.num_blocks,
            num_swap_blocks_used=0 if swap is None else swap.num_used,
            num_swapped_out=0 if swap is None else swap.num_outs,
            num_swapped_in=0 if swap is None else swap.num_ins,
        )


def _check_capacity(config: SchedulerConfig, executor: Executor) -> None:
    for name, wanted, limit in (
        ("max_num_seqs", config.max_num_seqs, executor.max_num_seqs),
        ("num_blocks", config.num_blocks, executor.num_blocks),
    ):
        if wanted > limit:
            raise ConfigError(f"{name} {wanted} is above the executor's {limit}; lower it")


def _check_token_ids(request: Request, vocab_size: int) -> None:
    """An id outside the vocabulary would read or write outside a tensor on the device."""
    params = request.params
    for name, token_ids in (
        ("prompt", request.prompt_token_ids),
        ("logit_bias", tuple(params.logit_bias)),
        ("stop_token_ids", tuple(params.stop_token_ids)),
        ("eos_token_ids", tuple(request.eos_token_ids)),
    ):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
            raise RequestError(
                f"{name} has the token id {wrong}; this model's ids are 0 to {vocab_size - 1}",
                param=name,
            )
