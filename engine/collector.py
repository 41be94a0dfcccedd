"""Gathers one request's Outputs into text, tokens and logprobs, in vLLM's shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hal.engine.output import OutputProcessor
from hal.engine.request import FinishReason, Output, Request, TokenLogprobs
from hal.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log probability at a position; rank 1 is the most likely token."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One choice of a request. finish_reason is None while it runs.

    logprobs[i] maps token ids to their Logprob at output position i: the chosen token and the most
    likely ones. stop_reason is the stop string or token id that ended it, if one did.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its choices, in order of index."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a choice."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None


class RequestCollector:
    """Feeds a request's Outputs through detokenising and stop strings."""

    def __init__(
        self,
        request: Request,
        prompt: str | None,
        tokenizer: Tokenizer | None,
        *,
        continues_text: bool,
    ) -> None:
        params = request.params
        self.request = request
        self.result = RequestOutput(
            request_id=request.request_id,
            prompt=prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=[CompletionOutput(index) for index in range(params.n)],
        )
        self._tokenizer = tokenizer
        self._texts = [
            None
            if tokenizer is None
            else OutputProcessor(tokenizer, params, continues_text=continues_text)
            for _ in range(params.n)
        ]
        if params.logprobs is not None:
            for output in self.result.outputs:
                output.logprobs, output.cumulative_logprob = [], 0.0

    @property
    def finished(self) -> bool:
        return self.result.finished

    def feed(self, output: Output) -> Delta | None:
        """Add one step's tokens; None when the choice had already ended (by a stop string)."""
        choice = self.result.outputs[output.index]
        if choice.finish_reason is not None:
            return None
        self.result.num_cached_tokens = max(self.result.num_cached_tokens, output.num_cached_tokens)
        choice.token_ids.extend(output.token_ids)
        text = self._add_text(choice, output)
        self._add_logprobs(choice, output)
        if choice.finish_reason is None and output.finish_reason is not None:
            choice.finish_reason = str(output.finish_reason)
            choice.stop_reason = output.stop_reason
        return Delta(choice.index, text, output.token_ids, choice.finish_reason)

    def _add_text(self, choice: CompletionOutput, output: Output) -> str:
        processor = self._texts[choice.index]
        if processor is None:
            return ""
        delta = processor.process(output)
        choice.text += delta.text
        if delta.finished_by_stop is not None:
            choice.finish_reason = str(FinishReason.STOP)
            choice.stop_reason = delta.finished_by_stop
        return delta.text

    def _add_logprobs(self, choice: CompletionOutput, output: Output) -> None:
        if choice.logprobs is None or choice.cumulative_logprob is None:
            return
        for position in output.logprobs:
            choice.logprobs.append(self._by_token(position))
            choice.cumulative_logprob += position.logprob

    def _by_token(self, position: TokenLogprobs) -> dict[int, Logprob]:
        found = {
            token_id: Logprob(logprob, rank, self._spell(token_id))
            for rank, (token_id, logprob) in enumerate(
                zip(position.top_ids, position.top_logprobs, strict=True), start=1
            )
        }
        found[position.token_id] = Logprob(
            position.logprob, position.rank + 1, self._spell(position.token_id)
        )
        return found

    def _spell(self, token_id: int) -> str:
        if self._tokenizer is None:
            return ""
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")
