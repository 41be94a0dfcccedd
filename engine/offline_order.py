"""In which order many requests that are all there at once should start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hal.engine.request import Request


def offline_order(requests: Sequence[Request], block_size: int) -> list[int]:
    """Indices of the requests: those that share a prefix after one another, so that its blocks are
    still cached; the longest family first, so that it does not run on alone at the end."""
    families: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        families[tuple(request.prompt_token_ids[:block_size])].append(index)
    lengths = [_most_tokens(request) for request in requests]

    def longest(family: list[int]) -> int:
        return max(lengths[index] for index in family)

    order: list[int] = []
    for family in sorted(families.values(), key=longest, reverse=True):
        order += sorted(family, key=lambda index: requests[index].prompt_token_ids)
    return order


def _most_tokens(request: Request) -> int:
    max_tokens = request.params.max_tokens
    assert max_tokens is not None, "Request.params.max_tokens is resolved by the caller"
    return len(request.prompt_token_ids) + max_tokens
