"""A decoder-only stack: embed, layers, final norm, logits. Model files supply the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hal import opset
from hal.binding import Buffer
from hal.engine.layers.builder import Attention, Builder
from hal.engine.layers.vocabulary import Vocabulary
from hal.kv import KVKind, KVSpec
from hal.opset.attention import AttentionFamily
from hal.opset.indexing import GatherProblem
from hal.opset.norm import NormInput
from hal.tensor import Tensor


class Norm(Protocol):
    """The norm of one place in the model, of x + residual where there is one."""

    def __call__(self, x: Tensor, residual: Tensor | None, out: Tensor) -> None: ...

    def of(self, x: Tensor, residual: Tensor | None) -> NormInput:
        """For a block that does it itself."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What layers read besides the hidden states: positions [T] int32 and each layer's cache."""

    num_tokens: int
    positions: Tensor
    kv_caches: Sequence[Tensor]


class MlpLike(Protocol):
    """A layer's second half; x is first written as the norm."""

    def __call__(self, x: Tensor, out: Tensor, norm: NormInput) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A pre-norm transformer layer."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MlpLike


class Embedding(Protocol):
    """Token ids (and positions, where learned) to hidden states."""

    def __call__(self, token_ids: Tensor, positions: Tensor, out: Tensor) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderParts:
    """What a model file makes."""

    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Vocabulary


class Decoder:
    """Runs a step through the layers. The residual stream and the layer's delta stay apart, so
    that each norm adds and normalises in one pass, which is the business of the block behind it."""

    def __init__(self, build: Builder, parts: DecoderParts) -> None:
        config, dtype = build.config, build.options.dtype
        self._parts = parts
        self._residual = build.hidden_buffer("residual")
        self._hidden = build.hidden_buffer("hidden")
        self._delta = build.hidden_buffer("delta")
        width = GatherProblem(width=config.hidden_size, dtype=dtype)
        self._gather = build.binder.bind(opset.gather_rows, width)
        self.parameters = build.parameters
        self.has_replaced_layers = False
        self.kv_specs = tuple(_kv_spec(build, layer) for layer in range(config.num_layers))

    @property
    def attention_families(self) -> tuple[AttentionFamily, ...]:
        """Each layer's attention family; equal problems share one object."""
        return tuple(layer.attention.family for layer in self._parts.layers)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self._parts.layers

    def replace_layers(self, change: Callable[[Sequence[Layer]], tuple[Layer, ...]]) -> None:
        """Run other layers from now on, such as the same ones with taps: always in Python, since a
        replay would pass them by."""
        self.has_replaced_layers = True
        self._parts = replace(self._parts, layers=change(self._parts.layers))

    def forward(self, token_ids: Tensor, step: Step) -> None:
        """Run all layers over token_ids [T] int32; the result stays in the step arena."""
        rows = step.num_tokens
        residual, hidden = self._residual.rows(rows), self._hidden.rows(rows)
        delta = self._delta.rows(rows)
        self._parts.embedding(token_ids, step.positions, residual)
        for index, layer in enumerate(self._parts.layers):
            norm = layer.attention_norm
            first = norm.of(residual, None) if index == 0 else norm.of(delta, residual)
            layer.attention(hidden, step.positions, step.kv_caches[index], delta, first)
            layer.mlp(hidden, delta, layer.mlp_norm.of(delta, residual))

    def logits(self, rows: Tensor, num_tokens: int, scratch: LogitsScratch, out: Tensor) -> None:
        """Logits of the forwarded rows; rows [N] int32, out [N, vocab_size] float32."""
        num_rows = rows.shape[0]
        delta, residual = scratch.delta.rows(num_rows), scratch.residual.rows(num_rows)
        self._gather(self._delta.rows(num_tokens), rows, delta)
        self._gather(self._residual.rows(num_tokens), rows, residual)
        self._parts.final_norm(delta, residual, delta)
        self._parts.head.logits(delta, out)

    def hidden_states(self, num_tokens: int) -> Tensor:
        """[num_tokens, hidden_size] behind the final norm, of all forwarded rows; after `logits`,
        since it may write over what that reads."""
        delta, residual = self._delta.rows(num_tokens), self._residual.rows(num_tokens)
        hidden = self._hidden.rows(num_tokens)
        self._parts.final_norm(delta, residual, hidden)
        return hidden


@dataclass(frozen=True, slots=True)
class LogitsScratch:
    """The sampled rows' hidden states, [max_num_seqs, hidden_size] each."""

    delta: Buffer
    residual: Buffer


def _kv_spec(build: Builder, layer: int) -> KVSpec:
    config = build.config
    window = config.windows[layer]
    return KVSpec(
        kind=KVKind.FULL if window is None else KVKind.SLIDING,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=build.options.kv_dtype or build.options.dtype,
        window=window,
    )
