"""GPT-2: layer normalisation with biases, learned positions, weights stored [inputs, outputs].

Source: Radford et al. 2019.
"""

from __future__ import annotations

from hal import opset
from hal.engine.layers.builder import Attention, AttentionNames, Builder, LayerNorm, Mlp, MlpNames
from hal.engine.layers.decoder import Decoder, DecoderParts, Layer
from hal.engine.layers.parameters import Section
from hal.engine.layers.vocabulary import Vocabulary
from hal.opset.elementwise import ElementwiseProblem
from hal.opset.norm import NormKind
from hal.opset.vocab import VocabFamily
from hal.tensor import Tensor


def build(build: Builder) -> Decoder:
    """The whole model; head and token embedding are tied."""
    config = build.config
    tokens = build.vocab("transformer.wte.weight", embeds=True, makes_logits=True)
    rows = Section.whole(config.max_position_embeddings)
    positions = build.table("transformer.wpe.weight", rows, embeds=True)
    parts = DecoderParts(
        embedding=PositionedEmbedding(build, tokens, positions),
        layers=tuple(_layer(build, index) for index in range(config.num_layers)),
        final_norm=LayerNorm(build, "transformer.ln_f", config.norm_eps),
        head=tokens,
    )
    return Decoder(build, parts)


class PositionedEmbedding:
    """The sum of a token's row and its position's row."""

    def __init__(self, build: Builder, tokens: Vocabulary, positions: VocabFamily) -> None:
        width, dtype = build.config.hidden_size, build.options.dtype
        self._tokens = tokens
        self._positions = positions
        self._add = build.binder.bind(opset.add, ElementwiseProblem(width=width, dtype=dtype))
        self._position_rows = build.hidden_buffer("position_rows")

    def __call__(self, token_ids: Tensor, positions: Tensor, out: Tensor) -> None:
        rows = self._position_rows.rows(token_ids.shape[0])
        self._tokens.embed(token_ids, out)
        self._positions.embed(positions, rows)
        self._add(out, rows, out)


def _layer(build: Builder, index: int) -> Layer:
    config = build.config
    prefix = f"transformer.h.{index}"
    return Layer(
        attention_norm=LayerNorm(build, f"{prefix}.ln_1", config.norm_eps),
        attention=Attention(
            build,
            AttentionNames(
                qkv=(f"{prefix}.attn.c_attn",),
                output=f"{prefix}.attn.c_proj",
                is_transposed=True,
            ),
            index,
            NormKind.LAYER,
        ),
        mlp_norm=LayerNorm(build, f"{prefix}.ln_2", config.norm_eps),
        mlp=Mlp(
            build,
            MlpNames(up=f"{prefix}.mlp.c_fc", down=f"{prefix}.mlp.c_proj", is_transposed=True),
            NormKind.LAYER,
        ),
    )
