"""What became known of one HTTP request on its way: for its log line and its spans.

Numbers, names and codes only: no text of a prompt or an answer is ever put here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import Scope

from hal.sampling_params import SamplingParams
from hal.server.usage import Usage

_KEY = "hal_facts"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Where a request's time went, from its hand-over to the engine to its last token."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True)
class RequestFacts:
    """Filled by whoever knows; empty where a request did not get so far.

    started_ns: of the wall clock; every *_at: seconds of the monotonic clock
    operation: as OpenTelemetry's GenAI conventions name it; "" for routes that generate nothing
    key: the name of the caller's key
    queued_s: in the engine, until the first step
    """

    started_ns: int = field(default_factory=time.time_ns)
    started_at: float = field(default_factory=time.monotonic)
    operation: str = ""
    key: str = ""
    answer_id: str = ""
    is_stream: bool = False
    params: SamplingParams | None = None
    usage: Usage | None = None
    submitted_at: float | None = None
    queued_s: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    error_code: str = ""

    def count_tokens(self, now: float, queued_s: float) -> None:
        """Some more tokens are there."""
        if self.first_token_at is None:
            self.first_token_at, self.queued_s = now, queued_s
        self.last_token_at = now

    @property
    def phases(self) -> Phases | None:
        """None where there was no token."""
        if self.submitted_at is None or self.first_token_at is None or self.last_token_at is None:
            return None
        # Two clocks: the engine's share cannot be longer than what the front saw.
        queue_s = min(self.queued_s, self.first_token_at - self.submitted_at)
        return Phases(
            queue_s=queue_s,
            prefill_s=self.first_token_at - self.submitted_at - queue_s,
            decode_s=self.last_token_at - self.first_token_at,
        )

    @property
    def ttft_s(self) -> float | None:
        """From the request's first byte; None before there was a token."""
        return None if self.first_token_at is None else self.first_token_at - self.started_at

    def as_log(self) -> dict[str, object]:
        """For a log line: only what is known."""
        known: dict[str, object] = {
            "operation": self.operation,
            "key": self.key,
            "stream": self.is_stream,
            "finish_reasons": self.finish_reasons,
            "error": self.error_code,
        }
        if self.usage is not None:
            known["prompt_tokens"] = self.usage.num_prompt
            known["cached_tokens"] = self.usage.num_cached
            known["completion_tokens"] = self.usage.num_completion
        if self.ttft_s is not None:
            known["queue_ms"] = round(1000 * self.queued_s, 2)
            known["ttft_ms"] = round(1000 * self.ttft_s, 2)
        return {k: v for k, v in known.items() if v is not False and v != "" and v != []}


def facts_of(scope: Scope) -> RequestFacts:
    """The one record of a request, made when somebody first asks for it."""
    found = scope.get(_KEY)
    if not isinstance(found, RequestFacts):
        found = scope[_KEY] = RequestFacts(operation=_OPERATIONS.get(scope["path"], ""))
    return found
