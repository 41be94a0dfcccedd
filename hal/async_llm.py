"""`AsyncLLM`: the same calls as `LLM`, awaited; the engine steps in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from hal.errors import EngineError, HalError
from hal.llm import (
    Conversation,
    Delta,
    Output,
    Prompt,
    RequestOutput,
    Session,
    as_conversations,
    as_params,
    as_prompts,
    engine_config,
)
from hal.memory import MemoryPlan
from hal.sampling_params import SamplingParams

Command = Callable[[], None]


class _Stream:
    """One request's way from the engine thread to a coroutine: deltas, then None or an error."""

    def __init__(
        self, session: Session, prompt: Prompt, params: SamplingParams, *, continues_text: bool
    ) -> None:
        self.collector = session.collector(prompt, params, continues_text=continues_text)
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()

    def put(self, item: Delta | Exception | None) -> None:
        """From the engine thread; a loop that was closed meanwhile has nobody waiting."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def deltas(self) -> AsyncIterator[Delta]:
        while (item := await self._items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class _Worker(threading.Thread):
    """Owns the engine: only this thread calls it after start-up."""

    def __init__(self, session: Session) -> None:
        super().__init__(name="hal-engine", daemon=True)
        self._session = session
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._is_open = True

    def submit(self, stream: _Stream) -> None:
        self._commands.put(lambda: self._add(stream))

    def call(self, action: Callable[[], object], done: asyncio.Future[None]) -> None:
        """Run `action` between two steps; `done` gets its end, or what it raised."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                action()
            except HalError as error:
                loop.call_soon_threadsafe(_settle, done, error)
            else:
                loop.call_soon_threadsafe(_settle, done, None)

        self._commands.put(run)

    def abort(self, request_id: str) -> None:
        self._commands.put(lambda: self._abort(request_id))

    def stop(self) -> None:
        self._commands.put(self._end)

    def run(self) -> None:
        engine = self._session.engine
        while self._is_open:
            if not engine.has_work or not self._commands.empty():
                self._commands.get()()
                continue
            try:
                for output in engine.step():
                    self._route(output)
            except EngineError:
                # The sequences of the failed step come out of the next one, with the reason.
                continue

    def _add(self, stream: _Stream) -> None:
        request = stream.collector.request
        try:
            self._session.engine.add(request)
        except HalError as error:
            stream.put(error)
            return
        self._streams[request.request_id] = stream

    def _abort(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._session.engine.abort(request_id)

    def _end(self) -> None:  # not _stop: Thread has one, which its join() calls
        self._is_open = False
        for request_id, stream in list(self._streams.items()):
            self._abort(request_id)
            stream.put(EngineError("the engine was closed while the request ran"))

    def _route(self, output: Output) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return
        if output.error is not None:
            self._abort(output.request_id)
            message = f"request {output.request_id}: {output.error}"
            stream.put(EngineError(message, code=output.error_code))
            return
        delta = stream.collector.feed(output)
        if delta is not None:
            stream.put(delta)
            if delta.finish_reason is not None and not stream.collector.finished:
                # The engine knows nothing of stop strings: it would go on with this choice.
                self._session.engine.abort(output.request_id, output.index)
        if stream.collector.finished:
            self._abort(output.request_id)
            stream.put(None)


class AsyncLLM:
    """LLM for asyncio. Requests of all coroutines share one engine and are batched together.

    Cancelling a coroutine aborts its request and frees its blocks.
    """

    def __init__(
        self, model: str = "hal-tiny", *, show_progress: bool | None = None, **settings: Any
    ) -> None:
        show = sys.stderr.isatty() if show_progress is None else show_progress
        self._session = Session(engine_config(model, settings), show)
        self._worker = _Worker(self._session)
        self._worker.start()

    @property
    def plan(self) -> MemoryPlan:
        """Where every byte went."""
        return self._session.built.plan

    def explain(self) -> dict[str, object]:
        """Device, settings, memory and kernels, each with its reason."""
        return self._session.built.as_dict()

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; results in the order of the prompts."""
        return await self._complete(as_prompts(prompts), sampling_params, continues_text=True)

    async def _complete(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        continues_text: bool,
    ) -> list[RequestOutput]:
        params = as_params(sampling_params, self._session.default_params(), len(prompts))
        streams = [
            _Stream(self._session, p, s, continues_text=continues_text)
            for p, s in zip(prompts, params, strict=True)
        ]
        await _all_or_none([asyncio.ensure_future(self._drain(stream)) for stream in streams])
        return [stream.collector.result for stream in streams]

    async def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template."""
        prompts = [
            self._session.render(conversation, add_generation_prompt=add_generation_prompt)
            for conversation in as_conversations(messages)
        ]
        return await self._complete(prompts, sampling_params, continues_text=False)

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[Delta]:
        """Text as it is made."""
        params = sampling_params or self._session.default_params()
        async for delta in self._run(_Stream(self._session, prompt, params, continues_text=True)):
            yield delta

    async def pin(self, prompt: Prompt) -> str:
        """Compute a prompt and keep its full blocks until `unpin`; returns the pin's name.

        Raises RequestError: with HAL-E421 for more than `max_pinned_share` of the KV blocks.
        """
        params = SamplingParams(temperature=0.0, max_tokens=1)
        stream = _Stream(self._session, prompt, params, continues_text=True)
        await self._drain(stream)
        request = stream.collector.request
        await self._call(
            lambda: self._session.engine.pin(request.request_id, request.prompt_token_ids)
        )
        return request.request_id

    async def unpin(self, name: str) -> None:
        """The prefix is evicted like any other again. Raises RequestError for an unknown name."""
        await self._call(lambda: self._session.engine.unpin(name))

    async def _call(self, action: Callable[[], object]) -> None:
        self._check_open()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._worker.call(action, done)
        await done

    def _check_open(self) -> None:
        if not self._worker.is_alive():
            raise EngineError("this AsyncLLM is closed; make a new one")

    def close(self) -> None:
        """End every request with an error and stop the engine thread."""
        self._worker.stop()
        self._worker.join()
        self._session.built.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _drain(self, stream: _Stream) -> None:
        async for _ in self._run(stream):
            pass

    async def _run(self, stream: _Stream) -> AsyncIterator[Delta]:
        self._check_open()
        if stream.collector.request.params.guided_decoding is not None:
            await asyncio.to_thread(self._session.engine.prepare, stream.collector.request)
        self._worker.submit(stream)
        try:
            async for delta in stream.deltas():
                yield delta
        finally:
            self._worker.abort(stream.collector.request.request_id)


def _settle(done: asyncio.Future[None], error: HalError | None) -> None:
    """Nobody may wait any more."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


async def _all_or_none(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait for all; the first error cancels the others and is raised as it is."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
