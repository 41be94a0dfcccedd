"""From logits on the device to a StepResult: the bound sampling ops and their buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hal import opset
from hal.binding import Binder, Buffer
from hal.device import Device, Event
from hal.dtypes import DType
from hal.engine.batch import (
    Int32,
    SampledLogprobs,
    SamplingBatch,
    SamplingSettings,
    StepResult,
    TokenMasks,
)
from hal.opset.indexing import TokenProblem
from hal.opset.sampling import SampleProblem, SamplingInputs
from hal.sampling_params import MAX_LOGPROBS
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTensors:
    """What one step leaves on the device; logprob tensors only where a row asked for them."""

    tokens: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor, Tensor] | None


class PendingTokens:
    """A submitted step whose tokens are still on their way to the host."""

    def __init__(self, device: Device, sampled: SampledTensors, event: Event) -> None:
        self._device = device
        self._sampled = sampled
        self._event = event

    def wait(self) -> StepResult:
        """Tokens and log probabilities on the host. A token of -1 marks a row without a maximum."""
        self._event.wait()
        # The buffers are reused by the next step, so the result must own its memory.
        tokens = np.array(self._device.download(self._sampled.tokens), dtype=np.int32)
        return StepResult(
            token_ids=tokens[:, None],
            num_tokens=np.ones(len(tokens), dtype=np.int32),
            row_errors=tokens < 0,
            logprobs=self._download_logprobs(),
        )

    def _download_logprobs(self) -> SampledLogprobs | None:
        if self._sampled.logprobs is None:
            return None
        chosen, rank, top_ids, top = (
            np.array(self._device.download(x)) for x in self._sampled.logprobs
        )
        return SampledLogprobs(chosen=chosen, rank=rank, top_ids=top_ids, top_logprobs=top)


class TokenSampler:
    """Samples up to `max_rows` rows a step and keeps each slot's last token on the device."""

    def __init__(self, binder: Binder, vocab_size: int, max_rows: int) -> None:
        problem = SampleProblem(vocab_size=vocab_size)
        self._adjust: Callable[..., None] = binder.bind(opset.adjust_logits, problem)
        self._mask: Callable[..., None] = binder.bind(opset.mask_logits, problem)
        self._sample: Callable[..., None] = binder.bind(opset.sample, problem)
        self._logprobs: Callable[..., None] = binder.bind(opset.logprobs, problem)
        self._keep: Callable[..., None] = binder.bind(opset.keep_tokens, TokenProblem())
        arena = binder.arena
        num_top = min(MAX_LOGPROBS, vocab_size)
        self._binder = binder
        self.logits = arena.buffer("logits", vocab_size, DType.FLOAT32, rows=max_rows)
        self._adjusted = arena.buffer("adjusted", vocab_size, DType.FLOAT32, rows=max_rows)
        self._tokens = arena.buffer("sampled_tokens", (), DType.INT32, rows=max_rows)
        self._chosen = arena.buffer("chosen_logprobs", (), DType.FLOAT32, rows=max_rows)
        self._rank = arena.buffer("chosen_rank", (), DType.INT32, rows=max_rows)
        self._top_ids = arena.buffer("top_ids", num_top, DType.INT32, rows=max_rows)
        self._top = arena.buffer("top_logprobs", num_top, DType.FLOAT32, rows=max_rows)
        self.last_tokens = arena.buffer("last_tokens", (), DType.INT32, rows=max_rows)
        token_index = arena.buffer("token_index", (), DType.INT32, rows=max_rows)
        self._uploaded = UploadedSampling(lambda: binder.device, token_index)

    @property
    def logits_bytes(self) -> int:
        """The part of the arena that the plan lists as logits."""
        return self.logits.num_bytes + self._adjusted.num_bytes

    def run(self, sampling: SamplingBatch, slots: Int32) -> PendingTokens:
        """Sample the first N rows of `logits`; slots [N] keep the tokens."""
        device, num_rows = self._binder.device, len(slots)
        logits, tokens = self.logits.rows(num_rows), self._tokens.rows(num_rows)
        inputs = self._uploaded.inputs_of(sampling)
        adjusted = logits
        if inputs.has_bias or inputs.has_penalties:
            adjusted = self._adjusted.rows(num_rows)
            self._adjust(logits, inputs, adjusted)
        if sampling.masks is not None:
            adjusted = self._masked(adjusted, sampling.masks)
        self._sample(adjusted, inputs, tokens)
        self._keep(tokens, self._uploaded.slots_of(slots), self._last_rows)
        logprobs = None
        if self._uploaded.wants_logprobs:
            logprobs = self._make_logprobs(logits, tokens, num_rows)
        return PendingTokens(
            device, SampledTensors(tokens=tokens, logprobs=logprobs), device.record()
        )

    def _masked(self, logits: Tensor, masks: TokenMasks) -> Tensor:
        upload, out = self._binder.device.upload, self._adjusted.rows(logits.shape[0])
        self._mask(logits, upload(masks.rows), upload(masks.words()), out)
        return out

    @property
    def _last_rows(self) -> Tensor:
        return self.last_tokens.rows(self.last_tokens.shape[0])

    def _make_logprobs(
        self, logits: Tensor, tokens: Tensor, num_rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the model's own distribution: before penalties, bias, masks, temperature, filters."""
        chosen, rank = self._chosen.rows(num_rows), self._rank.rows(num_rows)
        top_ids, top = self._top_ids.rows(num_rows), self._top.rows(num_rows)
        self._logprobs(logits, tokens, chosen, rank, top_ids, top)
        return chosen, rank, top_ids, top


class UploadedSampling:
    """Device copies of what was sampled last: while the rows stay the same, a step sends only
    their token_index, to the same place."""

    def __init__(self, device: Callable[[], Device], token_index: Buffer) -> None:
        self._device = device
        self._token_index = token_index
        self._settings: SamplingSettings | None = None
        self._host_slots: Int32 | None = None
        self.wants_logprobs = False

    def slots_of(self, slots: Int32) -> Tensor:
        """slots [N] int32 on the device."""
        if slots is not self._host_slots:
            self._host_slots = slots
            self._slots = self._device().upload(slots)
        return self._slots

    def inputs_of(self, sampling: SamplingBatch) -> SamplingInputs:
        device = self._device()
        if sampling.settings is not self._settings:
            self._settings = sampling.settings
            self.wants_logprobs = bool((sampling.settings.num_logprobs >= 0).any())
            token_index = self._token_index.rows(len(sampling.token_index))
            self._inputs = _upload_settings(device, sampling.settings, token_index)
        device.upload(sampling.token_index, into=self._inputs.token_index)
        if not len(sampling.bias_rows) and not len(sampling.penalty_rows):
            return self._inputs
        return replace(
            self._inputs,
            bias_rows=device.upload(sampling.bias_rows),
            bias_ids=device.upload(sampling.bias_ids),
            bias_values=device.upload(sampling.bias_values),
            penalty_rows=device.upload(sampling.penalty_rows),
            penalty_ids=device.upload(sampling.penalty_ids),
            penalty_counts=device.upload(sampling.penalty_counts),
            has_bias=len(sampling.bias_rows) > 0,
            has_penalties=len(sampling.penalty_rows) > 0,
        )


def _upload_settings(
    device: Device, settings: SamplingSettings, token_index: Tensor
) -> SamplingInputs:
    """Without bias and penalties, with the flags that let kernels skip work."""
    is_random = settings.temperature > 0
    filters = (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
    no_ids, no_values = np.empty(0, np.int32), np.empty(0, np.float32)
    return SamplingInputs(
        temperature=device.upload(settings.temperature),
        top_k=device.upload(settings.top_k),
        top_p=device.upload(settings.top_p),
        min_p=device.upload(settings.min_p),
        seeds=device.upload(settings.seeds.view(np.int64)),
        token_index=token_index,
        bias_rows=device.upload(no_ids),
        bias_ids=device.upload(no_ids),
        bias_values=device.upload(no_values),
        penalty_rows=device.upload(no_ids),
        penalty_ids=device.upload(no_ids),
        penalty_counts=device.upload(no_ids),
        presence=device.upload(settings.presence),
        frequency=device.upload(settings.frequency),
        repetition=device.upload(settings.repetition),
        is_all_greedy=not is_random.any(),
        has_filters=bool((filters & is_random).any()),
        has_bias=False,
        has_penalties=False,
    )
