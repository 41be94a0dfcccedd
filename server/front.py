"""What every route needs: the engine, the text side, the served name, and how to start a job."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.engine.request import FinishReason, Request
from hal.errors import RequestError
from hal.sampling_params import SamplingParams
from hal.server.async_engine import AsyncEngine, Sink
from hal.server.errors import (
    ApiError,
    api_error,
    engine_loading,
    invalid_value,
    model_not_found,
    request_lost,
)
from hal.server.facts import facts_of
from hal.server.generation import Generation, Job
from hal.server.guided import Guided, under_its_name
from hal.server.hot_prefixes import HotPrefix, RecentPrompts
from hal.server.keys import ApiKey, KeyLimits, KeyRing
from hal.server.messages import EngineInfo
from hal.server.metric_names import MetricsCompat
from hal.server.metrics import EngineView, ServerMetrics
from hal.server.params import (
    QueueTerms,
    check_num_choices,
    check_token_ids,
    with_token_budget,
)
from hal.server.pressure import MOST_DEFAULT_TOKENS, Stage
from hal.server.quotas import Quota
from hal.server.schema import Body, ignored_fields
from hal.server.stream import unless_disconnected
from hal.server.supervisor import EngineState
from hal.server.text import TextModel
from hal.server.tracing import RequestSpans


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """Token ids of every prompt of a body; `field` is where they came from, for error messages."""

    token_ids: Sequence[Sequence[int]]
    field: str
    continues_text: bool


@dataclass(frozen=True, slots=True)
class PinnedPrefix:
    """tokens: of the full blocks that are kept for prompts of `key`."""

    name: str
    key: str
    tokens: int


@dataclass(slots=True)
class Front:
    """One server's state; `text` is None until the tokenizer is loaded, `keys` where all may call.

    spans: where the spans of requests go; None makes none
    request_timeout_s: how long requests may wait that do not say it
    priority_levels: requests have a priority of 0 to one less; None is any
    is_leaving: each answer closes its connection, another server takes the next
    recent: prompts that were accepted
    has_page: whether `/` serves the page
    quotas: of each key, by its name
    pins: prefixes that were pinned over HTTP, by name
    """

    engine: AsyncEngine
    served_name: str
    text: TextModel | None = None
    metrics_compat: MetricsCompat = MetricsCompat.NONE
    spans: RequestSpans | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    keys: KeyRing | None = None
    request_timeout_s: float | None = None
    priority_levels: int | None = None
    is_leaving: bool = False
    recent: RecentPrompts = field(default_factory=RecentPrompts)
    has_page: bool = True
    pins: dict[str, PinnedPrefix] = field(default_factory=dict)
    quotas: dict[str, Quota] = field(init=False)
    metrics: ServerMetrics = field(init=False)

    def __post_init__(self) -> None:
        keys = () if self.keys is None else self.keys.keys
        self.quotas = {key.name: Quota(key.limits) for key in keys}
        self.metrics = ServerMetrics(self.served_name, self._engine_view, self.metrics_compat)
        self.metrics.watch(lambda: self.engine.pressure.lag.worst_s, self._pids)

    @property
    def is_ready(self) -> bool:
        return self.text is not None and self.engine.is_ready

    @property
    def info(self) -> EngineInfo:
        """Raises ApiError 503 while the engine loads."""
        info = self.engine.process.info
        if info is None:
            raise engine_loading()
        return info

    def loaded_text(self) -> TextModel:
        """Raises ApiError 503 until requests can be served."""
        self.engine.check_open()
        if self.text is None:
            raise engine_loading()
        return self.text

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.served_name:
            raise model_not_found(name, self.served_name)

    async def start(
        self,
        http: HttpRequest,
        encoded: EncodedPrompts,
        params: SamplingParams,
        job_id: str,
        terms: QueueTerms,
        guided: Guided | None = None,
    ) -> Generation:
        """Check the prompts against the context and get the engine's acceptance.

        guided: where `params` has its guided decoding from, for error messages
        """
        info = self.info
        check_num_choices(len(encoded.token_ids), params.n)
        for prompt in encoded.token_ids:
            check_token_ids(prompt, info.vocab_size, encoded.field)
        caller = caller_of(http)
        job = Job(
            request_id=job_id,
            prompts=encoded.token_ids,
            params=[
                self._with_token_budget(params, len(prompt), encoded.field)
                for prompt in encoded.token_ids
            ],
            continues_text=encoded.continues_text,
            terms=self.terms_of(terms, caller),
            tenant=tenant_of(caller),
        )
        quota = self.quota_of(caller)
        text, facts = self.loaded_text(), facts_of(http.scope)
        generation = Generation(self.engine, text, self.metrics, job, quota, facts)
        try:
            await unless_disconnected(http.receive, generation.start())
        except RequestError as error:
            raise under_its_name(error, guided) from error
        for prompt in encoded.token_ids:
            self.recent.note(job.tenant, prompt)
        return generation

    def hot_prefixes(self, tokenizer: bytes) -> list[HotPrefix]:
        """What recent prompts have in common, unless another tokenizer made their ids."""
        if self.text is None or self.text.tokenizer.fingerprint() != tokenizer:
            return []
        return self.recent.hot_prefixes(self.info.block_size)

    async def compute(
        self, name: str, token_ids: Sequence[int], tenant: str, priority: int = 0
    ) -> None:
        """Run a prompt, whose blocks are cached then. Raises as the engine does, or ApiError.

        name: of the request, unlike any other
        """
        request = Request(
            request_id=name,
            prompt_token_ids=tuple(token_ids),
            params=SamplingParams(temperature=0, max_tokens=1),
            priority=priority,
            tenant=tenant,
        )
        sink: Sink = asyncio.Queue()
        try:
            await self.engine.submit(request, sink)
            item = await sink.get()
            if isinstance(item, Exception):
                raise item
            if item.finish_reason is FinishReason.ERROR:
                raise request_lost(item.error_code, item.error)
        finally:
            self.engine.abort(name)

    def _with_token_budget(
        self, params: SamplingParams, num_prompt_tokens: int, field: str
    ) -> SamplingParams:
        budget = with_token_budget(params, num_prompt_tokens, self.info.max_model_len, field)
        if params.max_tokens is not None or self.engine.pressure.stage is Stage.NORMAL:
            return budget
        assert budget.max_tokens is not None
        return replace(budget, max_tokens=min(budget.max_tokens, MOST_DEFAULT_TOKENS))

    def quota_of(self, caller: ApiKey | None) -> Quota:
        """One without limits where all may call."""
        return Quota(KeyLimits()) if caller is None else self.quotas[caller.name]

    def terms_of(self, asked: QueueTerms, caller: ApiKey | None) -> QueueTerms:
        """With the server's timeout where none was given, and no more urgent than allowed."""
        timeout_s = self.request_timeout_s if asked.timeout_s is None else asked.timeout_s
        least = None if caller is None else caller.limits.min_priority
        levels = self.priority_levels
        if levels is not None and not 0 <= asked.priority < levels:
            raise invalid_value(
                f"priority must be from 0, the most urgent, to {levels - 1}; got {asked.priority}",
                "priority",
            )
        priority = asked.priority if least is None else max(asked.priority, least)
        return QueueTerms(priority, timeout_s)

    def refused(self, error: Exception) -> ApiError:
        """Count and translate what a handler raised."""
        answer = api_error(error)
        if answer.status != 499:  # counted as aborted where the generation was closed
            self.metrics.rejected(answer.code)
        return answer

    def _engine_view(self) -> EngineView | None:
        process, stats = self.engine.process, self.engine.stats
        if stats is None or process.info is None or process.state is not EngineState.READY:
            return None
        info = process.info
        return EngineView(
            stats=stats,
            heartbeat_age_s=process.heartbeat_age_s,
            num_queued_tokens=self.engine.admission.num_waiting_tokens,
            block_size=info.block_size,
            site_levels=info.site_levels,
            pressure_stage=self.engine.pressure.stage,
            circuit=self.engine.breaker.state,
            memory=info.memory_parts(),
        )

    def _pids(self) -> dict[str, int]:
        process = self.engine.process
        pids = {"front": os.getpid()}
        return pids if process.state is not EngineState.READY else {**pids, "engine": process.pid}


Handler = Callable[[Front, HttpRequest], Awaitable[Response]]
"""What answers one route."""


def caller_of(http: HttpRequest) -> ApiKey | None:
    """Whose key came with the request; None where all may call."""
    caller: ApiKey | None = http.scope["hal_key"]
    return caller


def tenant_of(caller: ApiKey | None) -> str:
    """As hal.engine.request.Request has it."""
    return "" if caller is None else caller.name


def job_id(http: HttpRequest) -> str:
    """The request id as the log has it, so that answers and log lines can be matched."""
    found = http.scope["hal_request_id"]
    assert isinstance(found, str)
    return found


def ignored_header(body: Body) -> dict[str, str]:
    names = ignored_fields(body)
    return {"x-hal-ignored": ", ".join(names)} if names else {}
