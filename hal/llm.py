"""The Python API: `LLM` runs the engine in this process, step by step in the caller's thread."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TextIO

from hal.aliases import apply_aliases
from hal.build import BuiltEngine, Posed, build_engine
from hal.config import EngineConfig
from hal.embedding import (
    POOLING_PARAMS,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    check_dimensions,
    finished_embedding,
)
from hal.engine.chat_prompt import ChatEncoder
from hal.engine.chat_template import load_chat_template
from hal.engine.collector import (
    CompletionOutput,
    Delta,
    Logprob,
    RequestCollector,
    RequestOutput,
)
from hal.engine.generation_config import read_generation_defaults
from hal.engine.offline_order import offline_order
from hal.engine.progress import Progress, SilentProgress, StreamProgress, Unit
from hal.engine.request import FinishReason, Output, Pooling, Request
from hal.engine.tokenizer import Tokenizer
from hal.errors import ContextLengthError, EngineError, RequestError, TokenizerError
from hal.memory import MemoryPlan
from hal.sampling_params import SamplingParams

__all__ = ["LLM", "CompletionOutput", "Delta", "Logprob", "Output", "RequestOutput"]

Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]
Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class _Encoded:
    text: str | None
    token_ids: tuple[int, ...]


class Session:
    """What LLM and AsyncLLM share: a built engine, its tokenizer, requests made from prompts."""

    def __init__(self, config: EngineConfig, show_progress: bool) -> None:
        progress: Progress = SilentProgress()
        if show_progress:
            progress = StreamProgress(sys.stderr, "loading weights", Unit.BYTES)
        self.built: BuiltEngine = build_engine(config, progress)
        self.engine = self.built.engine
        self._tokenizer, self._tokenizer_error = _load_tokenizer(self.built)
        self._defaults = read_generation_defaults(self.built.folder, self._tokenizer)
        self._chats: ChatEncoder | None = None
        self._ids = itertools.count()

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            assert self._tokenizer_error is not None
            raise self._tokenizer_error
        return self._tokenizer

    def default_params(self) -> SamplingParams:
        return self._defaults.sampling_params

    def collector(
        self, prompt: Prompt, params: SamplingParams, *, continues_text: bool = True
    ) -> RequestCollector:
        """A new request for this prompt; not added to the engine yet.

        continues_text: the answer goes on in the prompt's text, as it does not in a chat.
        """
        encoded = self._encode(prompt)
        request = Request(
            request_id=str(next(self._ids)),
            prompt_token_ids=encoded.token_ids,
            params=self._with_budget(params, len(encoded.token_ids)),
            eos_token_ids=self._defaults.eos_token_ids,
        )
        if params.stop_strings and self._tokenizer is None:
            self.tokenizer()
        return RequestCollector(
            request, encoded.text, self._tokenizer, continues_text=continues_text
        )

    def pooled(self, prompt: Prompt, pooling: Pooling) -> Request:
        """A request for this prompt's embedding; not added to the engine yet."""
        return Request(
            request_id=str(next(self._ids)),
            prompt_token_ids=self._encode(prompt).token_ids,
            params=POOLING_PARAMS,
            pooling=pooling,
        )

    def render(self, messages: Conversation, **options: Any) -> Sequence[int]:
        """Token ids of a conversation, through the chat template."""
        tokenizer = self.tokenizer()
        if self._chats is None:
            override = self.built.resolved.config.chat_template
            template = load_chat_template(self.built.folder, tokenizer.special_tokens, override)
            self._chats = ChatEncoder(template, tokenizer)
        return self._chats.encode(self._chats.render(messages, **options))

    def _encode(self, prompt: Prompt) -> _Encoded:
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return self._encode(prompt["prompt_token_ids"])
            if "prompt" in prompt:
                return self._encode(prompt["prompt"])
            raise RequestError(
                f"a prompt given as a dict needs 'prompt' or 'prompt_token_ids'; got {list(prompt)}"
            )
        if isinstance(prompt, str):
            return _Encoded(prompt, tuple(self.tokenizer().encode(prompt)))
        if any(not isinstance(token, int) or isinstance(token, bool) for token in prompt):
            raise RequestError("a prompt is a string or a list of token ids", param="prompt")
        return _Encoded(None, tuple(prompt))

    def _with_budget(self, params: SamplingParams, num_prompt: int) -> SamplingParams:
        """max_tokens None becomes what the context leaves; more than that is refused."""
        max_model_len = self.built.resolved.max_model_len
        left = max_model_len - num_prompt
        if params.max_tokens is None:
            return replace(params, max_tokens=max(1, left))
        if num_prompt < max_model_len and params.max_tokens > left:
            raise ContextLengthError(
                f"{num_prompt} prompt tokens and max_tokens {params.max_tokens} make "
                f"{num_prompt + params.max_tokens}, but the context has {max_model_len}; "
                f"lower max_tokens to {left} or leave it out",
                param="max_tokens",
            )
        return params


def _load_tokenizer(built: BuiltEngine) -> tuple[Tokenizer | None, TokenizerError | None]:
    """A folder without tokenizer files still serves token ids; the error waits for text."""
    try:
        return Tokenizer.load(built.folder), None
    except TokenizerError as error:
        return None, error


def engine_config(model: str, settings: Mapping[str, object]) -> EngineConfig:
    return EngineConfig(**{"model": model, **apply_aliases(settings)})  # type: ignore[arg-type]


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: a list of ints is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def as_params(
    params: SamplingParams | Sequence[SamplingParams] | None,
    default: SamplingParams,
    num_prompts: int,
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * num_prompts
    if len(params) != num_prompts:
        raise RequestError(f"{len(params)} sampling params for {num_prompts} prompts")
    return list(params)


def as_pooling(pooling: Pooling | str) -> Pooling:
    try:
        return Pooling(pooling)
    except ValueError:
        known = " or ".join(Pooling)
        raise RequestError(f"pooling must be {known}; got {pooling!r}", param="pooling") from None


def as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    if messages and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


class LLM:
    """An engine in this process. Settings are those of EngineConfig; vLLM's names work as aliases.

    Raises HalError subclasses. Use as a context manager, or call close().
    """

    def __init__(
        self, model: str = "hal-tiny", *, show_progress: bool | None = None, **settings: Any
    ) -> None:
        show = sys.stderr.isatty() if show_progress is None else show_progress
        self._session: Session | None = Session(engine_config(model, settings), show)

    @classmethod
    def from_config(cls, config: EngineConfig, *, show_progress: bool | None = None) -> Self:
        """The same from a ready EngineConfig, as the commands make it."""
        llm = cls.__new__(cls)
        show = sys.stderr.isatty() if show_progress is None else show_progress
        llm._session = Session(config, show)
        return llm

    @property
    def plan(self) -> MemoryPlan:
        """Where every byte went."""
        return self._open().built.plan

    @property
    def device_reason(self) -> str:
        """Why this device was opened, in one line."""
        return self._open().built.device_reason

    @property
    def posed(self) -> Posed | None:
        """Kernels and memory plan of the device that `null:PROFILE` stands for; else None."""
        return self._open().built.posed

    def explain(self) -> dict[str, object]:
        """Device, settings, memory and kernels, each with its reason."""
        return self._open().built.as_dict()

    def get_tokenizer(self) -> Tokenizer:
        return self._open().tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """The checkpoint's generation_config.json over our defaults."""
        return self._open().default_params()

    def render(
        self, messages: Conversation, *, add_generation_prompt: bool = True
    ) -> Sequence[int]:
        """The token ids that a conversation becomes through the model's chat template."""
        return self._open().render(messages, add_generation_prompt=add_generation_prompt)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; results in the order of the prompts.

        A prompt is text, a list of token ids, or {"prompt": ...} / {"prompt_token_ids": ...}.
        Those with a common prefix start one after another, and families with long ones first.
        All prompts are checked before the first one runs.
        """
        return self._complete(as_prompts(prompts), sampling_params, use_tqdm, continues_text=True)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template."""
        prompts = [
            self.render(conversation, add_generation_prompt=add_generation_prompt)
            for conversation in as_conversations(messages)
        ]
        return self._complete(prompts, sampling_params, use_tqdm, continues_text=False)

    def pin(self, prompt: Prompt) -> str:
        """Compute a prompt and keep its full blocks until `unpin`; returns the pin's name.

        Raises RequestError: with HAL-E421 for more than `max_pinned_share` of the KV blocks.
        """
        session = self._open()
        collector = session.collector(prompt, SamplingParams(temperature=0, max_tokens=1))
        _run(session, [collector], SilentProgress())
        request = collector.request
        session.engine.pin(request.request_id, request.prompt_token_ids)
        return request.request_id

    def unpin(self, name: str) -> None:
        """The prefix is evicted like any other again. Raises RequestError for an unknown name."""
        self._open().engine.unpin(name)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling | str = Pooling.LAST,
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """The model's final hidden states of each prompt, pooled; results in their order.

        dimensions: how many of the first ones are kept; normalize: scaled to length 1 after that
        """
        session = self._open()
        check_dimensions(dimensions, session.built.model.hidden_size)
        requests = [session.pooled(prompt, as_pooling(pooling)) for prompt in as_prompts(prompts)]
        found = _pool(session, requests)
        return [
            EmbeddingRequestOutput(
                request.request_id,
                list(request.prompt_token_ids),
                EmbeddingOutput(
                    finished_embedding(
                        found[request.request_id], dimensions, normalize=normalize
                    ).tolist()
                ),
            )
            for request in requests
        ]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[Delta]:
        """Text as it is made. Closing the iterator aborts the request and frees its blocks."""
        session = self._open()
        collector = session.collector(prompt, sampling_params or session.default_params())
        return _stream(session, collector)

    def _complete(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | None,
        *,
        continues_text: bool,
    ) -> list[RequestOutput]:
        session = self._open()
        params = as_params(sampling_params, session.default_params(), len(prompts))
        collectors = [
            session.collector(p, s, continues_text=continues_text)
            for p, s in zip(prompts, params, strict=True)
        ]
        show = sys.stderr.isatty() if use_tqdm is None else use_tqdm
        requests = [collector.request for collector in collectors]
        order = offline_order(requests, session.built.resolved.block_size)
        _run(session, [collectors[index] for index in order], _batch_progress(show, sys.stderr))
        return [collector.result for collector in collectors]

    def close(self) -> None:
        """Drop the engine, its memory and its other ranks; a second call does nothing."""
        if self._session is not None:
            self._session.built.close()
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> Session:
        if self._session is None:
            raise EngineError("this LLM is closed; make a new one")
        return self._session


def _batch_progress(show: bool, stream: TextIO) -> Progress:
    return StreamProgress(stream, "requests", Unit.REQUESTS) if show else SilentProgress()


def _run(
    session: Session,
    collectors: Iterable[RequestCollector],
    progress: Progress,
) -> None:
    """Run these requests to their end. On any error or Ctrl-C, none of them stays in the engine."""
    running = {collector.request.request_id: collector for collector in collectors}
    progress.start(len(running))
    try:
        for collector in running.values():
            session.engine.add(collector.request)
        while running:
            for output in session.engine.step():
                route(session, running, output, progress)
    finally:
        for request_id in running:
            session.engine.abort(request_id)
    progress.finish()


def _pool(session: Session, requests: Sequence[Request]) -> dict[str, bytes]:
    """The engine's embedding of each request by its id; on any error none stays in the engine."""
    running = {request.request_id for request in requests}
    found: dict[str, bytes] = {}
    try:
        for request in requests:
            session.engine.add(request)
        while running:
            for output in session.engine.step():
                if output.request_id not in running:
                    continue
                if output.embedding is None:
                    message = f"request {output.request_id}: {output.error}"
                    raise EngineError(message, code=output.error_code)
                found[output.request_id] = output.embedding
                running.discard(output.request_id)
    finally:
        for request_id in running:
            session.engine.abort(request_id)
    return found


def route(
    session: Session, running: dict[str, RequestCollector], output: Output, progress: Progress
) -> Delta | None:
    """Give an output to its request; ends the request when its last choice has ended."""
    collector = running.get(output.request_id)
    if collector is None:
        return None
    delta = collector.feed(output)
    if output.finish_reason is FinishReason.ERROR:
        raise EngineError(f"request {output.request_id}: {output.error}", code=output.error_code)
    if delta is not None and delta.finish_reason is not None and not collector.finished:
        # The engine knows nothing of stop strings: it would go on with this choice.
        session.engine.abort(output.request_id, output.index)
    if collector.finished:
        del running[output.request_id]
        # A stop string ends a request that the engine would go on with.
        session.engine.abort(output.request_id)
        progress.advance(1)
    return delta


def _stream(session: Session, collector: RequestCollector) -> Iterator[Delta]:
    running = {collector.request.request_id: collector}
    session.engine.add(collector.request)
    try:
        while running:
            for output in session.engine.step():
                delta = route(session, running, output, SilentProgress())
                if delta is not None and (delta.text or delta.finish_reason or delta.token_ids):
                    yield delta
    finally:
        for request_id in running:
            session.engine.abort(request_id)
