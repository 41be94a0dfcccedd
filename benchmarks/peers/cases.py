"""What is measured: shapes, weight formats, and the exact prompt and output lengths of each case.

Standard library only: every arm's environment imports this.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

WEIGHTS = ("bf16", "int8", "int4")
SHAPES = ("qwen2.5-0.5b", "llama-3.2-1b", "warm-up")
MIXED_REQUESTS = 64
MIXED_PROMPT = range(32, 257)
MIXED_OUTPUT = range(16, 129)
SEED = 64


class Kind(StrEnum):
    """Which part of a run counts."""

    DECODE = "decode"  # from the first token of the last request to the end
    PREFILL = "prefill"  # from the start to the first token
    MIXED = "mixed"  # all of it


@dataclass(frozen=True, slots=True)
class Work:
    """One prompt and exactly how many tokens to add to it, end-of-sequence tokens or not."""

    prompt: tuple[int, ...]
    num_output: int


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of one request."""

    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Case:
    """Requests that are all there at the start."""

    name: str
    kind: Kind
    lengths: tuple[Length, ...]

    @property
    def num_requests(self) -> int:
        return len(self.lengths)

    @property
    def max_len(self) -> int:
        """The context that the longest request needs."""
        return max(length.prompt + length.output for length in self.lengths)

    @property
    def mean_context(self) -> float:
        """Tokens that one decode step reads of the KV cache for one request, on average."""
        contexts = [length.prompt + length.output / 2 for length in self.lengths]
        return sum(contexts) / len(contexts)


def _mixed() -> tuple[Length, ...]:
    rng = random.Random(SEED)
    return tuple(
        Length(rng.choice(MIXED_PROMPT), rng.choice(MIXED_OUTPUT)) for _ in range(MIXED_REQUESTS)
    )


CASES = {
    case.name: case
    for case in (
        Case("decode-1", Kind.DECODE, (Length(32, 65),)),
        Case("prefill-1024", Kind.PREFILL, (Length(1024, 1),)),
        Case("decode-8", Kind.DECODE, (Length(32, 65),) * 8),
        Case("decode-32", Kind.DECODE, (Length(32, 65),) * 32),
        Case("mixed-64", Kind.MIXED, _mixed()),
        Case("decode-8k", Kind.DECODE, (Length(8127, 65),)),
    )
}


def requests(case: Case, vocab_size: int) -> list[Work]:
    """Random prompts, the same for every arm and run; no two start alike."""
    rng = random.Random(f"{SEED} {case.name}")
    return [
        Work(tuple(rng.randrange(2, vocab_size) for _ in range(length.prompt)), length.output)
        for length in case.lengths
    ]
