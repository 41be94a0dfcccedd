"""GPT-2 and its descendants, each with keys of its own."""

from __future__ import annotations

from hal.engine.config_fields import ConfigFields
from hal.planning.architectures.base import (
    Dims,
    Extras,
    checked,
    decoder,
    kv_layers,
    require,
    rotary_dim,
)
from hal.planning.architectures.llama_like import NEEDED
from hal.planning.architectures.windows import no_windows
from hal.planning.layers import attention, embedding, mlp, norms, table
from hal.planning.shape import ModelShape, Weight


def read_gpt2(fields: ConfigFields) -> ModelShape:
    """Learned positions, biases everywhere, tied."""
    return _learned_positions(fields, _gpt2_dims(fields, kv_heads=None))


def read_gpt_bigcode(fields: ConfigFields) -> ModelShape:
    """StarCoder: GPT-2 with one key and value head for all queries."""
    multi_query = fields.flag("multi_query", default=True)
    return _learned_positions(fields, _gpt2_dims(fields, kv_heads=1 if multi_query else None))


def read_gptj(fields: ConfigFields) -> ModelShape:
    """One norm a layer, no biases in attention, a head with bias."""
    dims = _gpt2_dims(fields, kv_heads=None)
    layers, width = dims.num_layers, dims.hidden_size
    tied = fields.flag("tie_word_embeddings", default=False)
    weights = [
        *embedding(dims.vocab_size, width, tied=tied, head_bias=True),
        norms("norms", width, layers + 1, bias=True),
        *attention(dims.attention(), layers),
        *mlp(dims.mlp(gated=False, bias=True), layers),
    ]
    rotated = fields.positive("rotary_dim", default=64)
    return _plain(fields, dims, weights, rotated)


def read_gpt_neox(fields: ConfigFields) -> ModelShape:
    """Parallel attention and MLP with a norm each, biases, untied."""
    dims = _neox_dims(fields)
    layers, width = dims.num_layers, dims.hidden_size
    tied = fields.flag("tie_word_embeddings", default=False)
    has_bias = fields.flag("attention_bias", default=True)
    weights = [
        *embedding(dims.vocab_size, width, tied=tied),
        norms("norms", width, 2 * layers + 1, bias=True),
        *attention(dims.attention(qkv_bias=has_bias, o_bias=has_bias), layers),
        *mlp(dims.mlp(gated=False, bias=True), layers),
    ]
    return _plain(fields, dims, weights, rotary_dim(fields, dims.head_dim, 0.25))


def read_falcon(fields: ConfigFields) -> ModelShape:
    """7B: one key and value head, one norm; 40B and 180B: the new decoder with two norms."""
    require(
        fields,
        *("hidden_size/n_embed", "num_attention_heads/n_head"),
        *("num_hidden_layers/n_layer", "vocab_size"),
    )
    is_new = fields.flag("new_decoder_architecture", default=False)
    num_heads = fields.positive("num_attention_heads", "n_head")
    kv_heads = num_heads
    if is_new:
        kv_heads = fields.positive("num_kv_heads", "n_head_kv", default=num_heads)
    elif fields.flag("multi_query", default=True):
        kv_heads = 1
    hidden_size = fields.positive("hidden_size", "n_embed")
    dims = checked(
        Dims(
            model_type=fields.text("model_type"),
            hidden_size=hidden_size,
            vocab_size=fields.positive("vocab_size"),
            num_layers=fields.positive("num_hidden_layers", "n_layer"),
            num_heads=num_heads,
            num_kv_heads=kv_heads,
            head_dim=hidden_size // num_heads,
            intermediate_size=fields.positive("ffn_hidden_size", default=4 * hidden_size),
            max_position_embeddings=fields.positive("max_position_embeddings", default=2048),
        ),
        fields.source,
    )
    return _falcon_shape(fields, dims, is_new)


def _falcon_shape(fields: ConfigFields, dims: Dims, is_new: bool) -> ModelShape:
    layers, width = dims.num_layers, dims.hidden_size
    bias = fields.flag("bias", default=False)
    parallel = fields.flag("parallel_attn", default=True)
    num_norms = fields.positive("num_ln_in_parallel_attn", default=2) if is_new else 1
    if not parallel:
        num_norms = 2
    weights = [
        *embedding(dims.vocab_size, width, tied=fields.flag("tie_word_embeddings", default=True)),
        norms("norms", width, num_norms * layers + 1, bias=True),
        *attention(dims.attention(qkv_bias=bias, o_bias=bias), layers),
        *mlp(dims.mlp(gated=False, bias=bias), layers),
    ]
    return _plain(fields, dims, weights, 0 if fields.flag("alibi", default=False) else None)


def _gpt2_dims(fields: ConfigFields, kv_heads: int | None) -> Dims:
    require(
        fields,
        *("n_embd/hidden_size", "n_head/num_attention_heads"),
        *("n_layer/num_hidden_layers", "vocab_size"),
    )
    hidden_size = fields.positive("n_embd", "hidden_size")
    num_heads = fields.positive("n_head", "num_attention_heads")
    default = 1024 if fields.text("model_type") != "gptj" else 2048
    dims = Dims(
        model_type=fields.text("model_type"),
        hidden_size=hidden_size,
        vocab_size=fields.positive("vocab_size"),
        num_layers=fields.positive("n_layer", "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=kv_heads or num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.positive("n_inner", default=4 * hidden_size),
        max_position_embeddings=fields.positive(
            "n_positions", "max_position_embeddings", default=default
        ),
    )
    return checked(dims, fields.source)


def _neox_dims(fields: ConfigFields) -> Dims:
    require(fields, *NEEDED)
    hidden_size = fields.positive("hidden_size")
    num_heads = fields.positive("num_attention_heads")
    dims = Dims(
        model_type=fields.text("model_type"),
        hidden_size=hidden_size,
        vocab_size=fields.positive("vocab_size"),
        num_layers=fields.positive("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.positive("intermediate_size"),
        max_position_embeddings=fields.positive("max_position_embeddings", default=2048),
    )
    return checked(dims, fields.source)


def _learned_positions(fields: ConfigFields, dims: Dims) -> ModelShape:
    layers, width = dims.num_layers, dims.hidden_size
    tied = fields.flag("tie_word_embeddings", default=True)
    weights = [
        *embedding(dims.vocab_size, width, tied=tied),
        table("positions", dims.max_position_embeddings, width),
        norms("norms", width, 2 * layers + 1, bias=True),
        *attention(dims.attention(qkv_bias=True, o_bias=True), layers),
        *mlp(dims.mlp(gated=False, bias=True), layers),
    ]
    return _plain(fields, dims, weights, 0)


def _plain(
    fields: ConfigFields, dims: Dims, weights: list[Weight], rotated: int | None
) -> ModelShape:
    """No gate and no windows."""
    width = dims.intermediate_size
    return decoder(
        fields,
        dims,
        weights,
        kv_layers(dims, no_windows(dims.num_layers)),
        Extras(rotary_dim=rotated, mlp_widths=(width, width)),
    )
