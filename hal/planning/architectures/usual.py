"""A model_type that nobody told us about: a decoder of the usual shape, and labelled as that."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError
from hal.planning.architectures.base import Dims, Extras, checked, decoder, kv_layers
from hal.planning.architectures.experts import read_deepseek
from hal.planning.architectures.windows import no_windows
from hal.planning.layers import MlpShape, attention, embedding, mlp, norms, router
from hal.planning.shape import ModelShape, Weight

# What configs call the same thing.
_NEEDED = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model", "dim", "model_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
}
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
_WIDTH = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "inner_dim")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "experts_per_token", "moe_top_k", "num_experts_per_token")
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    *("seq_length", "n_ctx", "model_max_length"),
)
_DEFAULT_POSITIONS = 2048


def read_usual(fields: ConfigFields) -> ModelShape:
    """Raises ModelError naming every key that is missing."""
    missing = [name for name, keys in _NEEDED.items() if fields.first(*keys) is None]
    model_type = fields.text("model_type", default="")
    if missing:
        named = f"model_type {model_type!r}" if model_type else "no model_type"
        raise ModelError(
            f"{fields.source} lacks {', '.join(missing)}; with {named} these are needed to plan. "
            f"Other names are understood, e.g. {'/'.join(_NEEDED[missing[0]][:4])}"
        )
    if fields.first("kv_lora_rank") is not None and fields.first("n_routed_experts") is not None:
        guess = f"model_type {model_type!r} is not known: planned like DeepSeek, by its keys"
        return replace(read_deepseek(fields), guess=guess)
    dims = _dims(fields, model_type or "unknown")
    gated = fields.text("hidden_act", "activation_function", default="silu") in ("silu", "swish")
    tied = fields.flag("tie_word_embeddings", default=False)
    blocks = _mlp(fields, dims, gated)
    weights = [
        *embedding(dims.vocab_size, dims.hidden_size, tied=tied),
        norms("norms", dims.hidden_size, 2 * dims.num_layers + 1),
        *attention(dims.attention(), dims.num_layers),
        *blocks.weights,
    ]
    guess = (
        f"model_type {model_type!r} is not known: planned as a decoder of the usual shape "
        f"(attention over the whole context, {blocks.what}, {'tied' if tied else 'untied'} "
        "embeddings); parts beyond that are not counted"
    )
    kv = kv_layers(dims, no_windows(dims.num_layers))
    return decoder(fields, dims, weights, kv, Extras(mlp_widths=blocks.widths, guess=guess))


@dataclass(frozen=True, slots=True)
class _Mlp:
    """All layers' MLPs or experts; `widths` of their step buffers."""

    weights: tuple[Weight, ...]
    widths: tuple[int, ...]
    what: str


def _mlp(fields: ConfigFields, dims: Dims, gated: bool) -> _Mlp:
    kind = "gated" if gated else "plain"
    inputs = 2 if gated else 1
    if fields.first(*_EXPERTS) is None:
        width = dims.intermediate_size
        of = "" if fields.first(*_WIDTH) is not None else " of 4 x hidden_size"
        weights = tuple(mlp(dims.mlp(gated=gated), dims.num_layers))
        return _Mlp(weights, (inputs * width, width), f"{kind} MLP{of}")
    num_experts = fields.positive(*_EXPERTS)
    num_active = fields.positive(*_ACTIVE, default=2)
    width = fields.positive("moe_intermediate_size", default=dims.intermediate_size)
    experts = MlpShape(
        width=dims.hidden_size,
        intermediate=width,
        gated=gated,
        num_experts=num_experts,
        num_active=num_active,
    )
    weights = (
        *mlp(experts, dims.num_layers, "experts"),
        *router(num_experts, dims.hidden_size, dims.num_layers),
    )
    widths = (inputs * width * num_active, width * num_active)
    return _Mlp(weights, widths, f"{num_experts} {kind} experts in every layer")


def _dims(fields: ConfigFields, model_type: str) -> Dims:
    hidden_size = fields.positive(*_NEEDED["hidden_size"])
    num_heads = fields.positive(*_NEEDED["num_attention_heads"])
    return checked(
        Dims(
            model_type=model_type,
            hidden_size=hidden_size,
            vocab_size=fields.positive(*_NEEDED["vocab_size"]),
            num_layers=fields.positive(*_NEEDED["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=fields.positive(*_KV_HEADS, default=num_heads),
            head_dim=fields.integer("head_dim", default=hidden_size // num_heads),
            intermediate_size=fields.positive(*_WIDTH, default=4 * hidden_size),
            max_position_embeddings=fields.positive(*_POSITIONS, default=_DEFAULT_POSITIONS),
        ),
        fields.source,
    )
