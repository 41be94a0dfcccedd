"""How tokens are chosen for one request; field names and defaults are the ones vLLM users know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hal.errors import RequestError
from hal.guided_decoding import GuidedDecodingParams, as_guided

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_NUM_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request's sampling settings; a wrong value raises RequestError naming the field.

    temperature 0 is argmax (ties: lowest id). top_k 0 or -1, top_p 1 and min_p 0 are off.
    presence and frequency penalties look at output tokens, repetition at prompt and output.
    logprobs: None = none, k = the chosen token and the k most likely (0..20).
    seed: same seed and request give the same tokens whatever else is in the batch.
    guided_decoding: only tokens that keep the answer within it are sampled. The end of sequence
    must be allowed to come: neither ignore_eos nor min_tokens goes with it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    seed: int | None = None
    skip_special_tokens: bool = True
    guided_decoding: GuidedDecodingParams | None = None

    def __post_init__(self) -> None:
        _int_range("n", self.n, 1, MAX_NUM_CHOICES)
        _range("temperature", self.temperature, 0.0, 2.0)
        _range("top_p", self.top_p, 0.0, 1.0)
        _int_range("top_k", self.top_k, -1, 2**31 - 1)
        _range("min_p", self.min_p, 0.0, 1.0)
        _range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_repetition_penalty(self.repetition_penalty)
        _check_logit_bias(self.logit_bias)
        _check_stop(self.stop)
        _check_token_budget(self.max_tokens, self.min_tokens)
        if self.logprobs is not None:
            _int_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _int_range("seed", self.seed, -(2**63), 2**63 - 1)
        if self.guided_decoding is not None:
            # A mapping is what a line of JSON has.
            object.__setattr__(self, "guided_decoding", as_guided(self.guided_decoding))
            _check_guided(self.ignore_eos, self.min_tokens)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        neutral = self.presence_penalty == 0.0 and self.frequency_penalty == 0.0
        return not (neutral and self.repetition_penalty == 1.0)


def _range(name: str, value: float, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise RequestError(
            f"{name} must be a number from {low:g} to {high:g}; got {value!r}", param=name
        )


def _int_range(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(
            f"{name} must be a whole number from {low} to {high}; got {value!r}", param=name
        )


def _check_repetition_penalty(value: float) -> None:
    if not math.isfinite(value) or value <= 0.0:
        raise RequestError(
            f"repetition_penalty must be a finite number above 0; got {value!r}",
            param="repetition_penalty",
        )


def _check_logit_bias(bias: Mapping[int, float]) -> None:
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"logit_bias has {len(bias)} entries; at most {MAX_LOGIT_BIAS}", param="logit_bias"
        )
    for token_id, value in bias.items():
        if token_id < 0:
            raise RequestError(f"logit_bias has the token id {token_id}", param="logit_bias")
        _range(f"logit_bias[{token_id}]", value, -100.0, 100.0)


def _check_stop(stop: str | Sequence[str]) -> None:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(s, str) for s in strings) or (not isinstance(stop, str) and "" in stop):
        raise RequestError("stop must be a non-empty string or a list of them", param="stop")
    if stop == "":
        raise RequestError("stop must not be an empty string", param="stop")


def _check_token_budget(max_tokens: int | None, min_tokens: int) -> None:
    if max_tokens is not None:
        _int_range("max_tokens", max_tokens, 1, 2**31 - 1)
    _int_range("min_tokens", min_tokens, 0, 2**31 - 1)
    if max_tokens is not None and min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens {min_tokens} is above max_tokens {max_tokens}", param="min_tokens"
        )


def _check_guided(ignore_eos: bool, min_tokens: int) -> None:
    """Where a grammar ends, the end of sequence is the only token left."""
    if ignore_eos:
        raise RequestError(
            "ignore_eos does not go with guided decoding: the grammar decides where the answer "
            "ends. Leave one of them out",
            param="ignore_eos",
        )
    if min_tokens > 0:
        raise RequestError(
            f"min_tokens {min_tokens} does not go with guided decoding: the grammar decides where "
            "the answer ends. Leave one of them out",
            param="min_tokens",
        )
