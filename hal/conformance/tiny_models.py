"""Tiny models of every supported architecture with seeded weights, as numbers.

Small enough for a decoder in numpy, and not so regular that a mistake could hide: head_dim is not
always hidden_size / heads, biases are never zero, logits are several nats apart.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from hal.conformance.stage import Float64, host_dtype
from hal.dtypes import DType
from hal.opset.elementwise import Activation

MAX_POSITIONS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyShape:
    """What differs between the architectures; gpt2 stands for everything that is not Llama-like."""

    model_type: str
    num_kv_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 96
    window: int | None = None
    is_tied: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    rope_theta: float = 10_000.0
    vocab_size: int = 151
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    norm_eps: float = 1e-5
    num_experts: int = 0
    top_k: int = 0
    norms_top_k: bool = False
    dense_layers: tuple[int, ...] = ()

    @property
    def is_gpt2(self) -> bool:
        return self.model_type == "gpt2"

    @property
    def activation(self) -> Activation:
        return Activation.GELU_TANH if self.is_gpt2 else Activation.SILU

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


SHAPES = {
    shape.model_type: shape
    for shape in (
        TinyShape(model_type="llama", is_tied=True, rope_theta=500.0),
        TinyShape(model_type="mistral", window=11, num_kv_heads=1),
        TinyShape(model_type="qwen2", has_qkv_bias=True),
        TinyShape(model_type="qwen3", has_qk_norm=True, head_dim=24, norm_eps=1e-6),
        TinyShape(model_type="mixtral", num_experts=5, top_k=2, norms_top_k=True, num_kv_heads=1),
        TinyShape(
            model_type="qwen3_moe",
            has_qk_norm=True,
            head_dim=24,
            norm_eps=1e-6,
            intermediate_size=40,
            num_experts=6,
            top_k=3,
            dense_layers=(0,),
        ),
        TinyShape(model_type="gpt2", num_kv_heads=4, is_tied=True, has_qkv_bias=True),
    )
}


@dataclass(frozen=True, slots=True)
class Product:
    """weight [outputs, inputs] and bias [outputs]."""

    weight: Float64
    bias: Float64 | None = None

    def __call__(self, x: Float64) -> Float64:
        y = x @ self.weight.T
        return np.asarray(y if self.bias is None else y + self.bias)


@dataclass(frozen=True, slots=True)
class NormWeights:
    """bias: None for RMSNorm."""

    weight: Float64
    bias: Float64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpWeights:
    """gate is None where there is none."""

    gate: Product | None
    up: Product
    down: Product


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer. mlps: its only one, or each expert's where a router chooses among them."""

    attention_norm: NormWeights
    qkv: Product
    q_norm: Float64 | None
    k_norm: Float64 | None
    output: Product
    mlp_norm: NormWeights
    router: Product | None
    mlps: tuple[MlpWeights, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Weights in float64, every one a value that `dtype` holds; positions [MAX_POSITIONS, hidden]
    where they are learned."""

    shape: TinyShape
    dtype: DType
    tokens: Float64
    positions: Float64 | None
    layers: tuple[LayerWeights, ...]
    final_norm: NormWeights
    head: Float64


def as_stored(values: Float64, dtype: DType) -> Float64:
    """`values` as memory of this dtype keeps them."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(host_dtype(dtype)).double().numpy()


def make_model(model_type: str, dtype: DType, seed: int = 0) -> TinyModel:
    """The same arguments make the same weights."""
    shape = SHAPES[model_type]
    draw = _Draw(np.random.default_rng([zlib.crc32(model_type.encode()), seed]), dtype, shape)
    tokens = draw.tokens()
    return TinyModel(
        shape=shape,
        dtype=dtype,
        tokens=tokens,
        positions=draw.matrix(MAX_POSITIONS, shape.hidden_size, 0.3) if shape.is_gpt2 else None,
        layers=tuple(draw.layer(index) for index in range(shape.num_layers)),
        final_norm=draw.norm(),
        head=tokens if shape.is_tied else draw.matrix(shape.vocab_size, shape.hidden_size, 0.3),
    )


class _Draw:
    """Draws weights in the order of the checkpoint."""

    def __init__(self, rng: np.random.Generator, dtype: DType, shape: TinyShape) -> None:
        self._rng = rng
        self._dtype = dtype
        self._shape = shape

    def matrix(self, rows: int, columns: int, scale: float) -> Float64:
        return as_stored(self._rng.standard_normal((rows, columns)) * scale, self._dtype)

    def vector(self, size: int, centre: float) -> Float64:
        return as_stored(centre + 0.2 * self._rng.standard_normal(size), self._dtype)

    def norm(self) -> NormWeights:
        size = self._shape.hidden_size
        return NormWeights(self.vector(size, 1.0), self._bias(size, self._shape.is_gpt2))

    def product(self, rows: int, columns: int, has_bias: bool) -> Product:
        return Product(self.matrix(rows, columns, columns**-0.5), self._bias(rows, has_bias))

    def tokens(self) -> Float64:
        """The vocabulary. With experts its first columns mark, for each, which tokens it gets.

        A choice that rounding could change would make an error of one op an error of the model.
        """
        shape = self._shape
        rows = self.matrix(shape.vocab_size, shape.hidden_size, 0.3)
        if shape.num_experts:
            ids, experts = np.arange(shape.vocab_size), np.arange(shape.num_experts)
            is_chosen = (experts - ids[:, None]) % shape.num_experts < shape.top_k
            size = self._rng.uniform(1.0, 1.5, is_chosen.shape)
            rows[:, : shape.num_experts] = as_stored(np.where(is_chosen, size, -size), self._dtype)
        return rows

    def router(self) -> Product:
        """Reads the marks, and a little of everything else."""
        shape = self._shape
        weight = self._rng.standard_normal((shape.num_experts, shape.hidden_size)) * 0.04
        weight[:, : shape.num_experts] += 4.0 * np.eye(shape.num_experts)
        return Product(as_stored(weight, self._dtype))

    def into_stream(self, columns: int, has_bias: bool) -> Product:
        """What is added to the hidden states; it leaves the marks there nearly alone."""
        product = self.product(self._shape.hidden_size, columns, has_bias)
        product.weight[: self._shape.num_experts] /= 64
        return product

    def layer(self, index: int) -> LayerWeights:
        shape = self._shape
        has_router = shape.num_experts > 0 and index not in shape.dense_layers
        return LayerWeights(
            attention_norm=self.norm(),
            qkv=self.product(shape.qkv_width, shape.hidden_size, shape.has_qkv_bias),
            q_norm=self.vector(shape.head_dim, 1.0) if shape.has_qk_norm else None,
            k_norm=self.vector(shape.head_dim, 1.0) if shape.has_qk_norm else None,
            output=self.into_stream(shape.num_heads * shape.head_dim, shape.is_gpt2),
            mlp_norm=self.norm(),
            router=self.router() if has_router else None,
            mlps=tuple(self.mlp() for _ in range(shape.num_experts if has_router else 1)),
        )

    def mlp(self) -> MlpWeights:
        shape = self._shape
        hidden, inner, is_gpt2 = shape.hidden_size, shape.intermediate_size, shape.is_gpt2
        return MlpWeights(
            gate=None if is_gpt2 else self.product(inner, hidden, False),
            up=self.product(inner, hidden, is_gpt2),
            down=self.into_stream(inner, is_gpt2),
        )

    def _bias(self, size: int, is_there: bool) -> Float64 | None:
        return self.vector(size, 0.0) if is_there else None
