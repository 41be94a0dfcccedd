"""A scripted engine for tests of the server: exact tokens, delays and faults, no model.

`hal-serve MODEL --engine fake:script.json` runs it in the engine process in place of the real one;
MODEL still gives the tokenizer. The first rule whose `prompt_contains` ids occur in the prompt, in
order and side by side, decides; without one the prompt is echoed, then EOS. The embedding of a
prompt is its number of tokens, their sum, and the first and the last one.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hal.config import EngineConfig
from hal.engine.request import EngineStats, FinishReason, Output, Request, TokenLogprobs
from hal.errors import (
    NOT_FINITE,
    PINS_FULL,
    ConfigError,
    ContextLengthError,
    EngineError,
    RequestError,
)
from hal.server.engine_process import LoadedEngine
from hal.server.messages import EngineInfo, ErrorRecord

HIDDEN_SIZE = 4


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one kind of request does. Steps count from 1 for each request.

    crash_at: the process exits; raise_at: step() raises RuntimeError; hang_at: step() never
    returns; error_at: this request alone ends, as with broken logits; fail_at: step() raises
    EngineError and the next one ends this request, as hal.engine.engine does.
    """

    prompt_contains: list[int]
    tokens: list[int] | None = None
    choices: list[list[int]] | None = None
    step_delay_s: float = 0.0
    num_cached_tokens: int = 0
    reject: ErrorRecord | None = None
    crash_at: int = 0
    raise_at: int = 0
    hang_at: int = 0
    error_at: int = 0
    fail_at: int = 0


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole behaviour of one fake engine."""

    vocab_size: int
    max_model_len: int = 128
    max_num_seqs: int = 8
    block_size: int = 4
    num_blocks: int = 256
    start_delay_s: float = 0.0
    start_error: ErrorRecord | None = None
    rules: list[Rule] = []


@dataclass(slots=True)
class _Choice:
    tokens: list[int]
    num_generated: int = 0
    is_finished: bool = False


@dataclass(slots=True)
class _Running:
    request: Request
    rule: Rule
    choices: list[_Choice]
    num_steps: int = 0
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = len(self.request.prompt_token_ids)


def load_fake_engine(path: str, config: EngineConfig) -> LoadedEngine:
    """Read the script; raises ConfigError when it is not one, or the error it asks for."""
    try:
        script = msgspec.json.decode(Path(path).read_bytes(), type=Script)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"--engine fake:{path}: {error}") from error
    time.sleep(script.start_delay_s)
    if script.start_error is not None:
        raise script.start_error.to_error()
    return LoadedEngine(FakeEngine(script), _info(script, config))


def _info(script: Script, config: EngineConfig) -> EngineInfo:
    return EngineInfo(
        architecture="fake",
        device="fake",
        device_reason="a scripted engine for tests",
        dtype="none",
        vocab_size=script.vocab_size,
        hidden_size=HIDDEN_SIZE,
        max_model_len=config.max_model_len or script.max_model_len,
        max_num_seqs=script.max_num_seqs,
        max_num_batched_tokens=script.max_model_len,
        block_size=script.block_size,
        num_blocks=script.num_blocks,
        plan_text="no memory is used",
        weights="none",
        site_levels={},
        explain_json=b'{"memory": {"total_bytes": 0}, "kernels": []}',
    )


class FakeEngine:
    """Follows a Script, one token per choice and step."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._active: dict[str, _Running] = {}
        self._pins: dict[str, int] = {}  # blocks by name
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._active)

    def prepare(self, request: Request) -> None:
        """A script decides every token; a grammar is neither compiled nor followed."""

    def add(self, request: Request) -> None:
        rule = self._rule_for(request.prompt_token_ids)
        if rule.reject is not None:
            raise rule.reject.to_error()
        num_prompt = len(request.prompt_token_ids)
        needed = num_prompt + (request.params.max_tokens or 0)
        if needed > self._script.max_model_len:
            raise ContextLengthError(
                f"{needed} tokens are above the context of {self._script.max_model_len}",
                param="max_tokens",
            )
        if any(token_id >= self._script.vocab_size for token_id in request.params.stop_token_ids):
            raise RequestError("stop_token_ids has an unknown id", param="stop_token_ids")
        scripts = rule.choices or [rule.tokens or list(request.prompt_token_ids)]
        choices = [_Choice(scripts[i % len(scripts)]) for i in range(request.params.n)]
        self._active[request.request_id] = _Running(request, rule, choices)

    def abort(self, request_id: str, index: int | None = None) -> None:
        if index is None:
            self._active.pop(request_id, None)
        elif request_id in self._active:
            running = self._active[request_id]
            running.choices[index].is_finished = True
            self._forget_finished(running)

    def pin(self, name: str, token_ids: Sequence[int], tenant: str) -> int:
        block_size = self._script.block_size
        num_blocks, num_left = len(token_ids) // block_size, self._script.num_blocks // 2
        num_left -= sum(self._pins.values())
        if not num_blocks:
            raise RequestError("there is nothing to pin", param="prompt")
        if num_blocks > num_left:
            raise RequestError(f"{num_blocks} blocks, {num_left} left", code=PINS_FULL)
        self._pins[name] = num_blocks
        return num_blocks * block_size

    def unpin(self, name: str) -> None:
        if self._pins.pop(name, None) is None:
            raise RequestError(f"there is no pin named {name!r}")

    def step(self) -> list[Output]:
        self._num_steps += 1
        outputs: list[Output] = []
        for running in list(self._active.values())[: self._script.max_num_seqs]:
            outputs += self._advance(running)
        return outputs

    def stats(self) -> EngineStats:
        running = list(self._active.values())[: self._script.max_num_seqs]
        block_size = self._script.block_size
        return EngineStats(
            num_steps=self._num_steps,
            num_running=len(running),
            num_waiting=len(self._active) - len(running),
            num_blocks_total=self._script.num_blocks,
            num_blocks_used=sum(-(-r.num_tokens // block_size) for r in running),
            num_blocks_cached=0,
            num_blocks_pinned=sum(self._pins.values()),
            num_pins=len(self._pins),
            num_evicted=0,
            num_late=0,
            num_expired=0,
            num_preemptions=0,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_prefix_queries=0,
            num_prefix_hits=0,
        )

    def _rule_for(self, prompt: tuple[int, ...]) -> Rule:
        for rule in self._script.rules:
            wanted = tuple(rule.prompt_contains)
            starts = range(len(prompt) - len(wanted) + 1)
            if any(prompt[i : i + len(wanted)] == wanted for i in starts):
                return rule
        return Rule(prompt_contains=[])

    def _advance(self, running: _Running) -> list[Output]:
        running.num_steps += 1
        self._apply_fault(running)
        if running.num_steps == 1:
            self._num_prompt_tokens += len(running.request.prompt_token_ids)
        rule = running.rule
        error_code = _error_code(rule, running.num_steps)
        outputs = []
        for index, choice in enumerate(running.choices):
            if not choice.is_finished and error_code:
                outputs.append(_error_output(running, index, error_code))
            elif not choice.is_finished:
                outputs.append(self._next_output(running, index))
        self._forget_finished(running)
        return outputs

    def _apply_fault(self, running: _Running) -> None:
        rule, step = running.rule, running.num_steps
        time.sleep(rule.step_delay_s)
        if step == rule.crash_at:
            os._exit(11)
        if step == rule.raise_at:
            raise RuntimeError("scripted failure of a step")
        while step == rule.hang_at:
            time.sleep(0.1)
        if step == rule.fail_at:
            raise EngineError("scripted failure of the device")

    def _next_output(self, running: _Running, index: int) -> Output:
        request, choice = running.request, running.choices[index]
        token_id = _next_token(request, choice)
        choice.num_generated += 1
        running.num_tokens += 1
        self._num_generated_tokens += 1
        reason = _finish_reason(request, choice, token_id)
        choice.is_finished = reason is not None
        is_stop_id = reason is FinishReason.STOP and token_id in request.params.stop_token_ids
        return Output(
            request_id=request.request_id,
            index=index,
            token_ids=(token_id,),
            logprobs=_logprobs(request, token_id),
            finish_reason=reason,
            stop_reason=token_id if is_stop_id else None,
            num_cached_tokens=running.rule.num_cached_tokens,
            embedding=None if request.pooling is None else _embedding(request),
        )

    def _forget_finished(self, running: _Running) -> None:
        if all(choice.is_finished for choice in running.choices):
            self._active.pop(running.request.request_id, None)


def _error_code(rule: Rule, step: int) -> str:
    """Why the request ends in its `step`; "" if it goes on."""
    if step == rule.error_at:
        return NOT_FINITE
    return EngineError.code if rule.fail_at and step == rule.fail_at + 1 else ""


def _error_output(running: _Running, index: int, error_code: str) -> Output:
    running.choices[index].is_finished = True
    return Output(
        request_id=running.request.request_id,
        index=index,
        token_ids=(),
        finish_reason=FinishReason.ERROR,
        error="scripted failure",
        error_code=error_code,
    )


def _next_token(request: Request, choice: _Choice) -> int:
    if choice.num_generated < len(choice.tokens):
        return choice.tokens[choice.num_generated]
    if request.eos_token_ids and not request.params.ignore_eos:
        return min(request.eos_token_ids)
    return choice.tokens[choice.num_generated % len(choice.tokens)]


def _finish_reason(request: Request, choice: _Choice, token_id: int) -> FinishReason | None:
    params = request.params
    if choice.num_generated >= params.min_tokens:
        is_eos = token_id in request.eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids:
            return FinishReason.STOP
    if choice.num_generated == params.max_tokens:
        return FinishReason.LENGTH
    return None


def _embedding(request: Request) -> bytes:
    ids = request.prompt_token_ids
    return struct.pack(f"<{HIDDEN_SIZE}f", len(ids), sum(ids), ids[0], ids[-1])


def _logprobs(request: Request, token_id: int) -> tuple[TokenLogprobs, ...]:
    """The chosen token at -0.5 and the ids after it at -1.5, -2.5, ..."""
    k = request.params.logprobs
    if k is None:
        return ()
    top_ids = tuple(token_id + i for i in range(k))
    top_logprobs = tuple(-0.5 - i for i in range(k))
    return (
        TokenLogprobs(
            token_id=token_id, logprob=-0.5, rank=1, top_ids=top_ids, top_logprobs=top_logprobs
        ),
    )
