"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Also Code Llama, Vicuna, WizardLM and every checkpoint of model_type "llama".
Source: Touvron et al. 2023 (Llama 2); Dubey et al. 2024 (Llama 3).
"""

from __future__ import annotations

from collections.abc import Callable

from hal.engine.layers.builder import Attention, AttentionNames, Builder, Mlp, MlpNames, RmsNorm
from hal.engine.layers.decoder import Decoder, DecoderParts, Embedding, Layer, MlpLike
from hal.engine.layers.vocabulary import Vocabulary
from hal.tensor import Tensor

MakeMlp = Callable[[Builder, int], MlpLike]


def build(build: Builder) -> Decoder:
    """The whole model; ModelConfig says what differs between the checkpoints of this family."""
    return llama_like(build, gated_mlp)


def llama_like(build: Builder, make_mlp: MakeMlp) -> Decoder:
    """Llama's layers with another second half; make_mlp gets the index of the layer."""
    embedding, head = token_embedding(build)
    config = build.config
    parts = DecoderParts(
        embedding=embedding,
        layers=tuple(_layer(build, index, make_mlp) for index in range(config.num_layers)),
        final_norm=RmsNorm(build, "model.norm", config.norm_eps),
        head=head,
    )
    return Decoder(build, parts)


class TokenEmbedding:
    """Rows of the vocabulary matrix; positions are rotated in later."""

    def __init__(self, family: Vocabulary) -> None:
        self._family = family

    def __call__(self, token_ids: Tensor, positions: Tensor, out: Tensor) -> None:
        self._family.embed(token_ids, out)


def token_embedding(build: Builder) -> tuple[Embedding, Vocabulary]:
    """The embedding and the logits head: one family when tied, two when not."""
    tied = build.config.tie_word_embeddings
    family = build.vocab("model.embed_tokens.weight", embeds=True, makes_logits=tied)
    if tied:
        return TokenEmbedding(family), family
    head = build.vocab("lm_head.weight", embeds=False, makes_logits=True)
    return TokenEmbedding(family), head


def _layer(build: Builder, index: int, make_mlp: MakeMlp) -> Layer:
    config = build.config
    prefix = f"model.layers.{index}"
    attention = f"{prefix}.self_attn"
    return Layer(
        attention_norm=RmsNorm(build, f"{prefix}.input_layernorm", config.norm_eps),
        attention=Attention(
            build,
            AttentionNames(
                qkv=tuple(f"{attention}.{part}_proj" for part in "qkv"),
                output=f"{attention}.o_proj",
                q_norm=f"{attention}.q_norm" if config.qk_norm else None,
                k_norm=f"{attention}.k_norm" if config.qk_norm else None,
            ),
            index,
        ),
        mlp_norm=RmsNorm(build, f"{prefix}.post_attention_layernorm", config.norm_eps),
        mlp=make_mlp(build, index),
    )


def gated_mlp(build: Builder, layer: int) -> MlpLike:
    """One MLP for all tokens."""
    mlp = f"model.layers.{layer}.mlp"
    names = MlpNames(gate=f"{mlp}.gate_proj", up=f"{mlp}.up_proj", down=f"{mlp}.down_proj")
    return Mlp(build, names)
