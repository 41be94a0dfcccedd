"""A whole decoder in float64 numpy, one sequence at a time: no cache, no batch, no blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hal.conformance import oracle
from hal.conformance.stage import Float64
from hal.conformance.tiny_models import (
    LayerWeights,
    MlpWeights,
    NormWeights,
    TinyModel,
    as_stored,
)
from hal.opset.attention import AttentionSpec, RopeProblem

Keep = Callable[[Float64], Float64]


def exactly(values: Float64) -> Float64:
    return values


class DecoderOracle:
    """What a model must compute.

    keep: what memory makes of every op's result; `exactly` for the oracle itself
    """

    def __init__(self, model: TinyModel, keep: Keep = exactly) -> None:
        self.model = model
        self._keep = keep
        shape = model.shape
        self._spec = AttentionSpec(scale=shape.head_dim**-0.5, window=shape.window)
        self._rope = RopeProblem(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            rotary_dim=0 if shape.is_gpt2 else shape.head_dim,
            has_norm=shape.has_qk_norm,
            dtype=model.dtype,
        )

    def logits(self, token_ids: NDArray[np.int32]) -> Float64:
        """[T, vocab_size] of one sequence from its first token."""
        hidden = self.hidden_states(token_ids)[-1]
        return np.asarray(self._norm(hidden, self.model.final_norm) @ self.model.head.T)

    def hidden_states(self, token_ids: NDArray[np.int32]) -> list[Float64]:
        """[T, hidden_size] before the first layer and behind each."""
        x = self.model.tokens[token_ids]
        if self.model.positions is not None:
            x = self._keep(x + self.model.positions[: len(x)])
        states = [x]
        for layer in self.model.layers:
            states.append(self.layer(layer, states[-1]))
        return states

    def layer(self, layer: LayerWeights, x: Float64) -> Float64:
        """One layer over one whole sequence x [T, hidden_size]."""
        attended = self._attention(layer, self._norm(x, layer.attention_norm))
        x = self._keep(x + attended)
        return self._keep(x + self._second_half(layer, self._norm(x, layer.mlp_norm)))

    def _attention(self, layer: LayerWeights, x: Float64) -> Float64:
        shape = self.model.shape
        qkv = self._keep(layer.qkv(x))
        if self._rope.rotary_dim:
            positions = np.arange(len(x), dtype=np.int32)
            table = self._cos_sin(len(x))
            qkv = self._keep(
                oracle.qk_norm_rope(
                    qkv, self._rope, positions, table, layer.q_norm, layer.k_norm, shape.norm_eps
                )
            )
        heads = qkv.reshape(len(x), -1, shape.head_dim)
        first, second = shape.num_heads, shape.num_heads + shape.num_kv_heads
        q, k, v = heads[:, :first], heads[:, first:second], heads[:, second:]
        return self._keep(
            layer.output(self._keep(oracle.attend(q, k, v, self._spec).reshape(len(x), -1)))
        )

    def _second_half(self, layer: LayerWeights, x: Float64) -> Float64:
        """The MLP, or the weighted sum of each token's experts."""
        if layer.router is None:
            return self._mlp(layer.mlps[0], x)
        shape = self.model.shape
        routed = oracle.top_experts(layer.router(x), shape.top_k, norms=shape.norms_top_k)
        total = np.zeros_like(x)
        for expert, mlp in enumerate(layer.mlps):
            token, choice = np.nonzero(routed.experts == expert)
            total[token] += routed.weights[token, choice, None] * self._mlp(mlp, x[token])
        return self._keep(total)

    def _mlp(self, mlp: MlpWeights, x: Float64) -> Float64:
        activation = self.model.shape.activation
        if mlp.gate is None:
            hidden = oracle.activate(self._keep(mlp.up(x)), activation)
        else:
            gate = oracle.activate(self._keep(mlp.gate(x)), activation)
            hidden = gate * self._keep(mlp.up(x))
        return self._keep(mlp.down(self._keep(hidden)))

    def _norm(self, x: Float64, norm: NormWeights) -> Float64:
        eps = self.model.shape.norm_eps
        if norm.bias is None:
            return self._keep(oracle.rms_norm(x, norm.weight, eps))
        return self._keep(oracle.layer_norm(x, norm.weight, norm.bias, eps))

    def _cos_sin(self, num_positions: int) -> Float64:
        dim = self._rope.rotary_dim
        frequency = self.model.shape.rope_theta ** -(np.arange(0, dim, 2) / dim)
        angles = np.arange(num_positions)[:, None] * frequency
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def plain_decoder(model: TinyModel) -> DecoderOracle:
    """The same decoder with every op's result rounded to the model's dtype, and sums exact."""
    return DecoderOracle(model, lambda values: as_stored(values, model.dtype))
