"""One API request from admission to its last token: text, stop strings, usage, abort."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from hal.engine.output import OutputProcessor
from hal.engine.request import FinishReason, Output, Request, TokenLogprobs
from hal.sampling_params import SamplingParams
from hal.server.async_engine import AsyncEngine, Sink
from hal.server.errors import request_lost
from hal.server.facts import RequestFacts
from hal.server.metrics import ServerMetrics
from hal.server.params import QueueTerms
from hal.server.quotas import Lease, Quota
from hal.server.text import TextModel
from hal.server.usage import Usage


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one step added to a choice; `stop_reason` is the stop string or id that ended it."""

    index: int
    text: str
    num_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class WholeChoice:
    """All deltas of one choice, joined; `end` is the last of them."""

    end: ChoiceDelta
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to generate: one engine request per prompt, all with one id and mode."""

    request_id: str
    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]
    continues_text: bool
    terms: QueueTerms = field(default_factory=QueueTerms)
    tenant: str = ""

    def most_tokens(self) -> int:
        """Prompts, and answers as long as they may become."""
        return sum(
            len(prompt) + params.n * (params.max_tokens or 0)
            for prompt, params in zip(self.prompts, self.params, strict=True)
        )


class _Choice:
    def __init__(self, request_id: str, index_in_request: int, processor: OutputProcessor) -> None:
        self.request_id = request_id
        self.index_in_request = index_in_request
        self.processor = processor
        self.is_open = True
        self.last_token_at: float | None = None
        self.num_tokens = 0


class Generation:
    """Start it, read its deltas to the end, and close it in any case: close() aborts the rest.

    quota: of the caller; start() takes from it, and what was not used is given back at the end
    facts: of the HTTP request, told what becomes known here
    """

    def __init__(
        self,
        engine: AsyncEngine,
        text: TextModel,
        metrics: ServerMetrics,
        job: Job,
        quota: Quota,
        facts: RequestFacts,
    ) -> None:
        self.usage = Usage(num_prompt=sum(len(prompt) for prompt in job.prompts))
        facts.answer_id, facts.params, facts.usage = job.request_id, job.params[0], self.usage
        self._facts = facts
        self._engine = engine
        self._metrics = metrics
        self._job = job
        self._quota = quota
        self._lease: Lease | None = None
        self._sink: Sink = asyncio.Queue()
        self._started_at = time.monotonic()
        self._num_per_prompt = job.params[0].n
        self._requests = [
            _request(job, i, text, engine.request_id(job.request_id))
            for i in range(len(job.prompts))
        ]
        self._prompt_of = {request.request_id: i for i, request in enumerate(self._requests)}
        self._choices = [
            _Choice(
                request.request_id,
                index,
                OutputProcessor(text.tokenizer, request.params, continues_text=job.continues_text),
            )
            for request in self._requests
            for index in range(request.params.n)
        ]
        self._num_open = len(self._choices)
        self._is_failed = False

    async def start(self) -> None:
        """Return when the engine has accepted every prompt; raises what it refused with.

        Raises ApiError 429 where the quota is used up.
        """
        self._lease = self._quota.admit(self._job.most_tokens())
        self._facts.submitted_at = time.monotonic()
        try:
            for request in self._requests:
                await self._engine.submit(request, self._sink)
        except BaseException as error:
            self._abort_all()
            if isinstance(error, asyncio.CancelledError):
                self._metrics.aborted("client_disconnect")
            self._num_open = 0
            self._settle(0)
            raise

    async def deltas(self) -> AsyncIterator[ChoiceDelta]:
        """Every delta of every choice, as they come; raises ApiError or HalError on failure."""
        while self._num_open:
            item = await self._sink.get()
            if isinstance(item, Exception):
                self._is_failed = True
                self._metrics.request_failed(item)
                raise item
            delta = self._delta_of(item)
            if delta is not None:
                yield delta
        seconds = time.monotonic() - self._started_at
        self._metrics.request_finished(seconds, self.usage.num_prompt, self.usage.num_completion)
        longest = max(choice.num_tokens for choice in self._choices)
        self._metrics.generation_finished(self._facts, longest)

    async def whole(self) -> list[WholeChoice]:
        """Every choice once it has ended, in order of index; raises as deltas() does."""
        choices: dict[int, WholeChoice] = {}
        async for delta in self.deltas():
            choice = choices.setdefault(delta.index, WholeChoice(delta))
            choice.end = delta
            choice.texts.append(delta.text)
            choice.logprobs.extend(delta.logprobs)
        return [choices[index] for index in sorted(choices)]

    def close(self) -> None:
        """Abort what still runs: the client has gone, or the engine failed."""
        if self._num_open and self._abort_all():
            self._metrics.aborted("error" if self._is_failed else "client_disconnect")
        self._num_open = 0
        self._settle(self.usage.num_prompt + self.usage.num_completion)

    def _settle(self, num_tokens: int) -> None:
        if self._lease is not None:
            self._lease.settle(num_tokens)

    def _abort_all(self) -> bool:
        return any([self._engine.abort(request.request_id) for request in self._requests])

    def _delta_of(self, output: Output) -> ChoiceDelta | None:
        prompt = self._prompt_of[output.request_id]
        index = prompt * self._num_per_prompt + output.index
        choice = self._choices[index]
        if not choice.is_open:
            return None
        if output.finish_reason is FinishReason.ERROR:
            self._is_failed = True
            self._end(FinishReason.ERROR)
            self._metrics.request_failed(output.error_code)
            raise request_lost(output.error_code, output.error)
        self._count(choice, output)
        text = choice.processor.process(output)
        reason: str | None = output.finish_reason
        stop_reason: str | int | None = output.stop_reason
        if text.finished_by_stop is not None:
            reason, stop_reason = FinishReason.STOP, text.finished_by_stop
        if reason is not None:
            self._finish(choice, reason)
        return ChoiceDelta(
            index, text.text, len(output.token_ids), output.logprobs, reason, stop_reason
        )

    def _finish(self, choice: _Choice, reason: str) -> None:
        choice.is_open = False
        self._num_open -= 1
        self._end(reason)
        self._engine.end_choice(choice.request_id, choice.index_in_request)

    def _end(self, reason: str) -> None:
        self._metrics.choice_finished(reason)
        self._facts.finish_reasons.append(str(reason))

    def _count(self, choice: _Choice, output: Output) -> None:
        now = time.monotonic()
        if not output.token_ids:
            return
        if choice.last_token_at is None:
            self._metrics.first_token(now - self._started_at)
            if choice.index_in_request == 0:
                self.usage.num_cached += output.num_cached_tokens
        else:
            self._metrics.next_token(now - choice.last_token_at)
        choice.last_token_at = now
        choice.num_tokens += len(output.token_ids)
        self._facts.count_tokens(now, output.queued_s)
        self.usage.num_completion += len(output.token_ids)


def _request(job: Job, index: int, text: TextModel, request_id: str) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(job.prompts[index]),
        params=job.params[index],
        eos_token_ids=text.defaults.eos_token_ids,
        priority=job.terms.priority,
        timeout_s=job.terms.timeout_s,
        tenant=job.tenant,
    )
