"""Decoders with Llama's keys in config.json: dense ones and those with experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hal.engine.config_fields import ConfigFields
from hal.engine.layers.parameters import Parallel
from hal.planning.architectures.base import (
    Dims,
    Extras,
    checked,
    decoder,
    kv_layers,
    require,
    rotary_dim,
)
from hal.planning.architectures.windows import (
    Windows,
    alternating,
    every_layer,
    no_windows,
    switched,
)
from hal.planning.layers import MlpShape, attention, embedding, linear, mlp, norms, router
from hal.planning.shape import ModelShape, Weight

# Keys that no default can stand for.
NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vocab_size",
)

WindowRule = Callable[[ConfigFields, int], Windows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """How one model_type differs from Llama; defaults are what a missing key means.

    qk_norm: "" (none), "head" (one vector of head_dim) or "width" (over all heads)
    """

    positions: int = 2048
    num_kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / num_heads
    qkv_bias: bool = False
    bias_key: str = "attention_bias"
    mlp_bias_key: str = "mlp_bias"
    qk_norm: str = ""
    gated: bool = True
    norm_bias: bool = False
    norms_per_layer: int = 2
    tied: bool = False
    head_bias: bool = False
    bias_default: bool = False
    rotary: float = 1.0
    windows: WindowRule = lambda _fields, num_layers: no_windows(num_layers)


TRAITS = {
    "llama": Traits(),
    "mistral": Traits(
        positions=131072, num_kv_heads=8, windows=lambda f, n: every_layer(f, n, 4096)
    ),
    "qwen2": Traits(
        positions=32768,
        num_kv_heads=32,
        qkv_bias=True,
        bias_key="",
        windows=lambda f, n: switched(f, n, 4096),
    ),
    "qwen3": Traits(
        positions=32768,
        num_kv_heads=32,
        head_dim=128,
        qk_norm="head",
        windows=lambda f, n: switched(f, n, 4096),
    ),
    "gemma": Traits(positions=8192, num_kv_heads=16, head_dim=256, tied=True),
    "gemma2": Traits(
        positions=8192,
        num_kv_heads=4,
        head_dim=256,
        tied=True,
        norms_per_layer=4,
        # Even layers have the window: the second of each pair sees everything.
        windows=lambda f, n: alternating(f, n, 4096, 2),
    ),
    "gemma3_text": Traits(
        positions=131072,
        num_kv_heads=4,
        head_dim=256,
        tied=True,
        norms_per_layer=4,
        qk_norm="head",
        windows=lambda f, n: alternating(f, n, 4096, 6),
    ),
    "phi3": Traits(positions=4096, bias_key="", windows=lambda f, n: every_layer(f, n, None)),
    "starcoder2": Traits(
        positions=4096,
        num_kv_heads=2,
        bias_key="use_bias",
        mlp_bias_key="use_bias",
        bias_default=True,
        gated=False,
        norm_bias=True,
        tied=True,
        windows=lambda f, n: every_layer(f, n, None),
    ),
    "phi": Traits(
        bias_key="",
        qkv_bias=True,
        gated=False,
        norm_bias=True,
        norms_per_layer=1,
        head_bias=True,
        rotary=0.5,
    ),
    "olmo2": Traits(qk_norm="width"),
    "mixtral": Traits(
        positions=131072, num_kv_heads=8, windows=lambda f, n: every_layer(f, n, None)
    ),
    "qwen2_moe": Traits(
        positions=32768,
        num_kv_heads=16,
        qkv_bias=True,
        bias_key="",
        windows=lambda f, n: switched(f, n, 4096),
    ),
    "qwen3_moe": Traits(
        positions=32768,
        num_kv_heads=4,
        qk_norm="head",
        windows=lambda f, n: switched(f, n, 4096),
    ),
    "gpt_oss": Traits(
        positions=131072,
        num_kv_heads=8,
        head_dim=64,
        bias_default=True,
        windows=lambda f, n: alternating(f, n, 128, 2),
    ),
}


def read_dense(fields: ConfigFields) -> ModelShape:
    """Attention and one MLP in every layer."""
    model_type = fields.text("model_type")
    traits = TRAITS[model_type]
    dims = llama_dims(fields, traits)
    mlp_bias = _flag(fields, traits.mlp_bias_key, default=traits.bias_default)
    mlp_bias = mlp_bias or model_type == "phi"
    shape = dims.mlp(gated=traits.gated, bias=mlp_bias)
    weights = [*frame(fields, traits, dims), *mlp(shape, dims.num_layers)]
    width = dims.intermediate_size
    widths = (2 * width, width) if traits.gated else (width, width)
    return _shape(fields, traits, dims, weights, Extras(mlp_widths=widths))


def read_experts(fields: ConfigFields) -> ModelShape:
    """Experts in place of the MLP, in the layers that config.json says."""
    model_type = fields.text("model_type")
    traits = TRAITS[model_type]
    dims = llama_dims(fields, traits)
    num_experts = fields.positive("num_local_experts", "num_experts")
    num_active = fields.positive("num_experts_per_tok", "experts_per_token", default=2)
    size = fields.positive("moe_intermediate_size", default=dims.intermediate_size)
    moe = _num_expert_layers(fields, dims.num_layers)
    dense = dims.num_layers - moe
    has_bias = model_type == "gpt_oss"
    experts = MlpShape(
        width=dims.hidden_size,
        intermediate=size,
        bias=has_bias,
        num_experts=num_experts,
        num_active=num_active,
    )
    weights = [*frame(fields, traits, dims), *mlp(experts, moe, "experts")]
    weights += router(num_experts, dims.hidden_size, moe, bias=has_bias)
    weights += mlp(dims.mlp(), dense)
    weights += _shared_expert(fields, dims, moe)
    widths = [2 * size * num_active, size * num_active]
    if dense:
        widths += [2 * dims.intermediate_size, dims.intermediate_size]
    cut = (size,) if not dense else (size, dims.intermediate_size)
    extras = Extras(
        mlp_widths=tuple(widths), whole_widths=(num_active * dims.hidden_size,), cut_sizes=cut
    )
    return _shape(fields, traits, dims, weights, extras)


def llama_dims(fields: ConfigFields, traits: Traits) -> Dims:
    """Sizes by Llama's keys; raises ModelError naming the first that is missing or wrong."""
    require(fields, *NEEDED)
    hidden_size = fields.positive("hidden_size")
    num_heads = fields.positive("num_attention_heads")
    kv_heads = num_heads
    if fields.first("num_key_value_heads") is not None:
        kv_heads = fields.positive("num_key_value_heads")
    elif not fields.has("num_key_value_heads") and traits.num_kv_heads:
        kv_heads = traits.num_kv_heads
    dims = Dims(
        model_type=fields.text("model_type"),
        hidden_size=hidden_size,
        vocab_size=fields.positive("vocab_size"),
        num_layers=fields.positive("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", default=traits.head_dim or hidden_size // num_heads),
        intermediate_size=fields.positive("intermediate_size"),
        max_position_embeddings=fields.positive(
            "max_position_embeddings", default=traits.positions
        ),
    )
    return checked(dims, fields.source)


def frame(fields: ConfigFields, traits: Traits, dims: Dims) -> Iterator[Weight]:
    """Everything but what stands in the MLP's place."""
    layers = dims.num_layers
    tied = fields.flag("tie_word_embeddings", default=traits.tied)
    yield from embedding(dims.vocab_size, dims.hidden_size, tied=tied, head_bias=traits.head_bias)
    yield norms("norms", dims.hidden_size, traits.norms_per_layer * layers, bias=traits.norm_bias)
    yield norms("final_norm", dims.hidden_size, 1, bias=traits.norm_bias)
    has_bias = _flag(fields, traits.bias_key, default=traits.bias_default)
    by_head = {"head": (dims.head_dim,) * 2, "": (0, 0)}
    by_head["width"] = (dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim)
    q_norm, k_norm = by_head[traits.qk_norm]
    shape = dims.attention(
        qkv_bias=traits.qkv_bias or has_bias,
        o_bias=has_bias or dims.model_type == "phi",
        q_norm=q_norm,
        k_norm=k_norm,
    )
    yield from attention(shape, layers)
    if dims.model_type == "gpt_oss":  # one sink a head
        yield norms("attention.sinks", dims.num_heads, layers)


def _shape(
    fields: ConfigFields, traits: Traits, dims: Dims, weights: list[Weight], extras: Extras
) -> ModelShape:
    windows = traits.windows(fields, dims.num_layers)
    rotated = rotary_dim(fields, dims.head_dim, traits.rotary)
    return decoder(
        fields, dims, weights, kv_layers(dims, windows), replace(extras, rotary_dim=rotated)
    )


def _flag(fields: ConfigFields, key: str, *, default: bool) -> bool:
    return bool(key) and fields.flag(key, default=default)


def _num_expert_layers(fields: ConfigFields, num_layers: int) -> int:
    """Qwen puts experts in every decoder_sparse_step-th layer, but not in mlp_only_layers."""
    step = fields.positive("decoder_sparse_step", default=1)
    dense_layers = {int(layer) for layer in fields.numbers("mlp_only_layers")}
    return sum(layer not in dense_layers and (layer + 1) % step == 0 for layer in range(num_layers))


def _shared_expert(fields: ConfigFields, dims: Dims, count: int) -> Iterator[Weight]:
    """Qwen2-MoE: an expert that every token meets, with a gate of its own."""
    size = fields.optional_integer("shared_expert_intermediate_size")
    if not size:
        return
    yield from mlp(MlpShape(width=dims.hidden_size, intermediate=size), count, "shared_expert")
    yield linear("shared_gate", 1, dims.hidden_size, count, Parallel.REPLICATED)
