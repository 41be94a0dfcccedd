"""How much may wait; apart from admission.py so that the command line needs no server package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Above either a request is refused; one alone is always taken.

    max_requests: that have no first token yet
    max_tokens: of their prompts
    """

    max_requests: int = 1024
    max_tokens: int = 1_000_000
