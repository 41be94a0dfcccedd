"""One choice of one request while it lives in the engine: its tokens, its blocks, its place."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from enum import Enum, auto

from hal.engine.grammar import Grammar
from hal.engine.prefix_hash import PrefixKeys
from hal.engine.request import FinishReason, Output, Request

NO_SLOT = -1
PROTECTED_AFTER_PREEMPTIONS = 3


class Status(Enum):
    """UNFORKED: waits for the prefill of the request's first choice."""

    UNFORKED = auto()
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


_MASK64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def choice_seed(seed: int, index: int) -> int:
    """The Philox key of choice `index`: choice 0 has the request's seed modulo 2^64.

    Others take the index-th output of SplitMix64 started at that seed (Steele, Lea, Flood 2014).
    """
    if index == 0:
        return seed & _MASK64
    z = (seed + index * _GOLDEN_GAMMA) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of choice `index`; a running one owns a slot.

    tokens     prompt and sampled tokens while it waits; a running one's are in `Slots`. Choices
               that are not forked yet share their first one's
    urgency    when its turn comes, in seconds of the scheduler's clock: its arrival, moved by its
               priority, but never by so much that it would wait for ever
    deadline   on the same clock; inf: none
    arrived_at on the same clock; queued_s: from then until it ran for the first time
    prefix     what its tokens are found by in the prefix cache, once somebody looked
    max_len    prompt and output tokens at which it ends with FinishReason.LENGTH
    unforked   choices that wait for this one's prefill, their slots reserved
    """

    request: Request
    index: int
    arrival: int
    seed: int
    tokens: array[int]
    max_len: int
    stop_ids: frozenset[int]
    urgency: float = 0.0
    deadline: float = math.inf
    arrived_at: float = 0.0
    prefix: PrefixKeys | None = None
    unforked: list[Sequence] = field(default_factory=list)
    slot: int = NO_SLOT
    status: Status = Status.UNFORKED
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    queued_s: float = 0.0
    grammar: Grammar | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """While it waits."""
        return len(self.tokens) - len(self.request.prompt_token_ids)

    @property
    def family(self) -> list[Sequence]:
        """This sequence and the choices that its prefill will fork."""
        return [self, *self.unforked]

    @property
    def is_protected(self) -> bool:
        return self.num_preemptions >= PROTECTED_AFTER_PREEMPTIONS

    def stop_reason(self, token_id: int) -> int | None:
        """The id of the request that stopped it; None for the model's own end of sequence."""
        is_eos = token_id in self.request.eos_token_ids and not self.request.params.ignore_eos
        return None if is_eos else token_id

    def last_output(
        self, reason: FinishReason, error: str | None = None, error_code: str | None = None
    ) -> Output:
        """Ends the sequence without a token."""
        return Output(
            request_id=self.request.request_id,
            index=self.index,
            token_ids=(),
            finish_reason=reason,
            error=error,
            error_code=error_code,
            num_cached_tokens=self.num_cached_tokens,
            queued_s=self.queued_s,
        )

    @property
    def running_rank(self) -> tuple[bool, int, int, int]:
        """A total order; the last running sequence is the next victim."""
        return (not self.is_protected, self.request.priority, self.arrival, self.index)

    @property
    def waiting_rank(self) -> tuple[float, int, int]:
        """A total order. A preempted sequence arrived before any of its priority that never ran."""
        return (self.urgency, self.arrival, self.index)


def urgency(arrived_at: float, priority: int, priority_wait_s: float) -> float:
    """When the turn of a request comes that arrived at `arrived_at` seconds.

    Strictly later for each lower priority, yet all within priority_wait_s: who arrives later than
    that never overtakes, so everybody's wait is bounded.
    """
    return arrived_at + priority_wait_s / 2 * priority / (1 + abs(priority))


def make_sequences(
    request: Request,
    arrival: int,
    seed: int,
    max_model_len: int,
    *,
    turn: float = 0.0,
    arrived_at: float = 0.0,
) -> Sequence:
    """The first choice of a request, with the others unforked behind it."""
    params = request.params
    assert params.max_tokens is not None, "Request.params.max_tokens is resolved by the caller"
    tokens = array("i", request.prompt_token_ids)
    stop_ids = frozenset(params.stop_token_ids)
    if not params.ignore_eos:
        stop_ids |= request.eos_token_ids
    choices = [
        Sequence(
            request=request,
            index=index,
            arrival=arrival,
            seed=choice_seed(seed, index),
            tokens=tokens,
            max_len=min(len(tokens) + params.max_tokens, max_model_len),
            stop_ids=stop_ids,
            urgency=turn,
            deadline=arrived_at + (math.inf if request.timeout_s is None else request.timeout_s),
            arrived_at=arrived_at,
        )
        for index in range(params.n)
    ]
    choices[0].unforked = choices[1:]
    choices[0].status = Status.WAITING
    return choices[0]
