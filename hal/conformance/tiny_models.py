"""Tiny models of every supported architecture with seeded weights, as checkpoints and as numbers.

Small enough for a decoder in numpy, and not so regular that a mistake could hide: head_dim is not
always hidden_size / heads, biases are never zero, logits are several nats apart.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
class LayerWeights:
    """One layer; gate is None where the MLP has none."""

    attention_norm: NormWeights
    qkv: Product
    q_norm: Float64 | None
    k_norm: Float64 | None
    output: Product
    mlp_norm: NormWeights
    gate: Product | None
    up: Product
    down: Product


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

    def write(self, folder: Path) -> None:
        """A model folder: config.json and model.safetensors in `dtype`."""
        from safetensors.torch import save_file

        folder.joinpath("config.json").write_text(json.dumps(config_of(self)), encoding="utf-8")
        kind = host_dtype(self.dtype)
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(values)).to(kind)
            for name, values in tensors_of(self)
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_stored(values: Float64, dtype: DType) -> Float64:
    """`values` as memory of this dtype keeps them."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(host_dtype(dtype)).double().numpy()


def make_model(model_type: str, dtype: DType, seed: int = 0) -> TinyModel:
    """The same arguments make the same weights."""
    shape = SHAPES[model_type]
    draw = _Draw(np.random.default_rng([zlib.crc32(model_type.encode()), seed]), dtype, shape)
    tokens = draw.matrix(shape.vocab_size, shape.hidden_size, 0.3)
    return TinyModel(
        shape=shape,
        dtype=dtype,
        tokens=tokens,
        positions=draw.matrix(MAX_POSITIONS, shape.hidden_size, 0.3) if shape.is_gpt2 else None,
        layers=tuple(draw.layer() for _ in range(shape.num_layers)),
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

    def layer(self) -> LayerWeights:
        shape = self._shape
        hidden, inner, is_gpt2 = shape.hidden_size, shape.intermediate_size, shape.is_gpt2
        return LayerWeights(
            attention_norm=self.norm(),
            qkv=self.product(shape.qkv_width, hidden, shape.has_qkv_bias),
            q_norm=self.vector(shape.head_dim, 1.0) if shape.has_qk_norm else None,
            k_norm=self.vector(shape.head_dim, 1.0) if shape.has_qk_norm else None,
            output=self.product(hidden, shape.num_heads * shape.head_dim, is_gpt2),
            mlp_norm=self.norm(),
            gate=None if is_gpt2 else self.product(inner, hidden, False),
            up=self.product(inner, hidden, is_gpt2),
            down=self.product(hidden, inner, is_gpt2),
        )

    def _bias(self, size: int, is_there: bool) -> Float64 | None:
        return self.vector(size, 0.0) if is_there else None


def config_of(model: TinyModel) -> dict[str, object]:
    """config.json, with the keys that checkpoints of this model_type have."""
    shape = model.shape
    shared: dict[str, object] = {
        "model_type": shape.model_type,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.is_tied,
        "dtype": str(model.dtype),
    }
    if shape.is_gpt2:
        return shared | {
            "n_embd": shape.hidden_size,
            "n_head": shape.num_heads,
            "n_layer": shape.num_layers,
            "n_inner": shape.intermediate_size,
            "n_positions": MAX_POSITIONS,
            "layer_norm_epsilon": shape.norm_eps,
        }
    return shared | {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": shape.window,
    }


Named = Iterator[tuple[str, Float64]]


def tensors_of(model: TinyModel) -> Named:
    """Every tensor by its name in a checkpoint of this model_type."""
    yield from _gpt2_tensors(model) if model.shape.is_gpt2 else _llama_tensors(model)


def _llama_tensors(model: TinyModel) -> Named:
    shape = model.shape
    yield "model.embed_tokens.weight", model.tokens
    if not shape.is_tied:
        yield "lm_head.weight", model.head
    yield "model.norm.weight", model.final_norm.weight
    q_rows, kv_rows = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for index, layer in enumerate(model.layers):
        at = f"model.layers.{index}"
        yield f"{at}.input_layernorm.weight", layer.attention_norm.weight
        yield f"{at}.post_attention_layernorm.weight", layer.mlp_norm.weight
        first = 0
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            part = slice(first, first + rows)
            yield f"{at}.self_attn.{name}_proj.weight", layer.qkv.weight[part]
            if layer.qkv.bias is not None:
                yield f"{at}.self_attn.{name}_proj.bias", layer.qkv.bias[part]
            first += rows
        yield f"{at}.self_attn.o_proj.weight", layer.output.weight
        if layer.q_norm is not None and layer.k_norm is not None:
            yield f"{at}.self_attn.q_norm.weight", layer.q_norm
            yield f"{at}.self_attn.k_norm.weight", layer.k_norm
        assert layer.gate is not None
        yield f"{at}.mlp.gate_proj.weight", layer.gate.weight
        yield f"{at}.mlp.up_proj.weight", layer.up.weight
        yield f"{at}.mlp.down_proj.weight", layer.down.weight


def _gpt2_tensors(model: TinyModel) -> Named:
    assert model.positions is not None
    yield "transformer.wte.weight", model.tokens
    yield "transformer.wpe.weight", model.positions
    yield from _with_bias("transformer.ln_f", model.final_norm.weight, model.final_norm.bias)
    for index, layer in enumerate(model.layers):
        at = f"transformer.h.{index}"
        for name, norm in (("ln_1", layer.attention_norm), ("ln_2", layer.mlp_norm)):
            yield from _with_bias(f"{at}.{name}", norm.weight, norm.bias)
        for name, product in (
            ("attn.c_attn", layer.qkv),
            ("attn.c_proj", layer.output),
            ("mlp.c_fc", layer.up),
            ("mlp.c_proj", layer.down),
        ):
            # This architecture stores [inputs, outputs].
            yield from _with_bias(f"{at}.{name}", product.weight.T, product.bias)


def _with_bias(name: str, weight: Float64, bias: Float64 | None) -> Named:
    assert bias is not None
    yield f"{name}.weight", weight
    yield f"{name}.bias", bias
