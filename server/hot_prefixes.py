"""What recent prompts have in common: the part of a prefix cache that is worth handing on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

_MAX_PROMPTS = 256
_MAX_TOKENS = 200_000
_MAX_PREFIXES = 32

Prompt = Sequence[int]


class HotPrefix(msgspec.Struct, frozen=True):
    """The start of at least two prompts of one tenant."""

    tenant: str
    token_ids: list[int]


class RecentPrompts:
    """The last prompts, at most 256 and 200,000 tokens of them."""

    def __init__(self) -> None:
        self._prompts: deque[tuple[str, tuple[int, ...]]] = deque()
        self._num_tokens = 0

    def note(self, tenant: str, prompt: Prompt) -> None:
        if len(prompt) > _MAX_TOKENS:
            return
        self._prompts.append((tenant, tuple(prompt)))
        self._num_tokens += len(prompt)
        while self._num_tokens > _MAX_TOKENS or len(self._prompts) > _MAX_PROMPTS:
            self._num_tokens -= len(self._prompts.popleft()[1])

    def hot_prefixes(self, least_tokens: int) -> list[HotPrefix]:
        """At most 32, longest first, none the start of another; each of `least_tokens` or more.

        From any thread, while prompts are noted: they are copied at once.
        """
        ordered = sorted(tuple(self._prompts))
        # In this order, the prompts with which one has most in common stand beside it.
        shared = {
            (tenant, one[:length])
            for (tenant, one), (other, two) in zip(ordered, ordered[1:], strict=False)
            if tenant == other and (length := _num_common(one, two)) >= least_tokens
        }
        found: list[tuple[str, tuple[int, ...]]] = []
        for tenant, prefix in sorted(shared, key=lambda item: (-len(item[1]), item)):
            if not any(t == tenant and p[: len(prefix)] == prefix for t, p in found):
                found.append((tenant, prefix))
        return [HotPrefix(tenant, list(prefix)) for tenant, prefix in found[:_MAX_PREFIXES]]


def _num_common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    pairs = zip(one, two, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
