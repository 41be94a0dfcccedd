"""DeepSeek V2 and V3 (latent attention, shared experts) and DBRX."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hal.engine.config_fields import ConfigFields
from hal.kv import KVKind
from hal.planning.architectures.base import (
    Dims,
    Extras,
    architecture,
    checked,
    decoder,
    dtype,
    has_dtype,
    kv_layers,
    require,
)
from hal.planning.architectures.llama_like import NEEDED
from hal.planning.architectures.windows import no_windows
from hal.planning.layers import (
    LatentShape,
    MlpShape,
    attention,
    embedding,
    latent_attention,
    mlp,
    norms,
    router,
    vector,
)
from hal.planning.shape import KVLayers, ModelShape, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """DeepSeek's own keys."""

    hidden_size: int
    vocab_size: int
    num_layers: int
    num_dense: int
    intermediate: int
    expert: int
    num_experts: int
    num_active: int
    num_shared: int
    latent: LatentShape


def read_deepseek(fields: ConfigFields) -> ModelShape:
    """One latent vector a token and layer is all that is remembered, for all heads."""
    sizes = _deepseek_sizes(fields)
    latent = sizes.latent
    heads = latent.num_heads
    q = heads * (latent.nope_dim + latent.rope_dim)
    active = sizes.expert * (sizes.num_active + sizes.num_shared)
    kv = KVLayers(
        kind=KVKind.LATENT,
        count=sizes.num_layers,
        num_kv_heads=1,
        key_dim=latent.kv_rank + latent.rope_dim,
        value_dim=0,
    )
    return ModelShape(
        model_type=fields.text("model_type"),
        architecture=architecture(fields),
        hidden_size=sizes.hidden_size,
        vocab_size=sizes.vocab_size,
        num_layers=sizes.num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        cut_sizes=(sizes.expert, sizes.intermediate),
        max_position_embeddings=fields.positive("max_position_embeddings", default=2048),
        dtype=dtype(fields),
        has_dtype=has_dtype(fields),
        weights=tuple(_deepseek_weights(fields, sizes)),
        kv=(kv,),
        dense_widths=(q, heads * latent.value_dim, 2 * active, active),
        whole_widths=(sizes.num_active * sizes.hidden_size,),
        # The up-projections are folded into the query: it meets the latent itself.
        attention_dim=heads * (2 * latent.kv_rank + latent.rope_dim),
        # A prompt's own keys and values are made once, and are smaller than the latent.
        prefill_attention_dim=q + heads * latent.value_dim,
        rotary_dim=latent.rope_dim,
    )


def _deepseek_sizes(fields: ConfigFields) -> _Sizes:
    require(
        fields,
        *(*NEEDED, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok"),
        *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    )
    num_layers = fields.positive("num_hidden_layers")
    hidden_size = fields.positive("hidden_size")
    return _Sizes(
        hidden_size=hidden_size,
        vocab_size=fields.positive("vocab_size"),
        num_layers=num_layers,
        num_dense=min(num_layers, fields.integer("first_k_dense_replace", default=0)),
        intermediate=fields.positive("intermediate_size"),
        expert=fields.positive("moe_intermediate_size"),
        num_experts=fields.positive("n_routed_experts"),
        num_active=fields.positive("num_experts_per_tok"),
        num_shared=fields.integer("n_shared_experts", default=0),
        latent=LatentShape(
            width=hidden_size,
            num_heads=fields.positive("num_attention_heads"),
            q_rank=fields.optional_integer("q_lora_rank") or 0,
            kv_rank=fields.positive("kv_lora_rank"),
            nope_dim=fields.positive("qk_nope_head_dim"),
            rope_dim=fields.positive("qk_rope_head_dim"),
            value_dim=fields.positive("v_head_dim"),
            bias=fields.flag("attention_bias", default=False),
        ),
    )


def _deepseek_weights(fields: ConfigFields, sizes: _Sizes) -> Iterator[Weight]:
    width, moe = sizes.hidden_size, sizes.num_layers - sizes.num_dense
    tied = fields.flag("tie_word_embeddings", default=False)
    yield from embedding(sizes.vocab_size, width, tied=tied)
    yield norms("norms", width, 2 * sizes.num_layers + 1)
    yield from latent_attention(sizes.latent, sizes.num_layers)
    yield from mlp(MlpShape(width=width, intermediate=sizes.intermediate), sizes.num_dense)
    experts = MlpShape(
        width=width,
        intermediate=sizes.expert,
        num_experts=sizes.num_experts,
        num_active=sizes.num_active,
    )
    yield from mlp(experts, moe, "experts")
    yield from router(sizes.num_experts, width, moe)
    if sizes.num_shared:
        shared = MlpShape(width=width, intermediate=sizes.expert * sizes.num_shared)
        yield from mlp(shared, moe, "shared_expert")
    if fields.text("model_type") == "deepseek_v3":  # balances the load without a loss term
        yield vector("router.correction", sizes.num_experts, moe)


def read_dbrx(fields: ConfigFields) -> ModelShape:
    """Grouped queries and experts, under keys of their own sections."""
    require(fields, "d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")
    attn, ffn = fields.section("attn_config"), fields.section("ffn_config")
    attn = attn or ConfigFields({}, f"{fields.source}: attn_config")
    ffn = ffn or ConfigFields({}, f"{fields.source}: ffn_config")
    hidden_size, num_heads = fields.positive("d_model"), fields.positive("n_heads")
    size = ffn.positive("ffn_hidden_size")
    num_experts, num_active = ffn.positive("moe_num_experts"), ffn.positive("moe_top_k")
    dims = Dims(
        model_type="dbrx",
        hidden_size=hidden_size,
        vocab_size=fields.positive("vocab_size"),
        num_layers=fields.positive("n_layers"),
        num_heads=num_heads,
        num_kv_heads=attn.positive("kv_n_heads"),
        head_dim=hidden_size // num_heads,
        intermediate_size=size,
        max_position_embeddings=fields.positive("max_seq_len"),
    )
    checked(dims, fields.source)
    experts = MlpShape(
        width=hidden_size, intermediate=size, num_experts=num_experts, num_active=num_active
    )
    tied = fields.flag("tie_word_embeddings", default=False)
    weights = [
        *embedding(dims.vocab_size, hidden_size, tied=tied),
        norms("norms", hidden_size, 2 * dims.num_layers + 1),
        *attention(dims.attention(), dims.num_layers),
        *mlp(experts, dims.num_layers, "experts"),
        *router(num_experts, hidden_size, dims.num_layers),
    ]
    widths = (2 * size * num_active, size * num_active)
    kv = kv_layers(dims, no_windows(dims.num_layers))
    whole = (num_active * hidden_size,)
    return decoder(fields, dims, weights, kv, Extras(mlp_widths=widths, whole_widths=whole))
