"""Problems of every op in the shape of a common model, to show which kernels would be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from hal import opset
from hal.dtypes import DType
from hal.opset.attention import AttentionProblem, AttentionSpec, RopeProblem
from hal.opset.block import AttentionBlockProblem, MlpBlockProblem
from hal.opset.elementwise import Activation, ActivationProblem, ElementwiseProblem
from hal.opset.indexing import GatherProblem, TokenProblem
from hal.opset.linear import LinearProblem
from hal.opset.moe import CombineProblem, MoeBlockProblem, RouteProblem
from hal.opset.norm import NormKind, NormProblem
from hal.opset.sampling import SampleProblem
from hal.opset.vocab import VocabProblem
from hal.select import Op

# Llama 3.2 1B: grouped heads, a gated MLP and tied embeddings, as in most models of today; experts
# as those of Qwen3-30B-A3B, which is as wide.
EXAMPLE_MODEL = "Llama-3.2-1B"
_HIDDEN_SIZE = 2048
_INTERMEDIATE_SIZE = 8192
_VOCAB_SIZE = 128256
_NUM_HEADS, _NUM_KV_HEADS, _HEAD_DIM = 32, 8, 64
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Site:
    """An op and the problem it is asked to run."""

    op: Op
    problem: object


def example_sites(dtype: DType) -> tuple[Site, ...]:
    """One problem for each op, coarsest ops first."""
    return (
        *_layer_sites(dtype),
        *_expert_sites(dtype),
        *_row_sites(dtype),
        *_token_sites(dtype),
    )


def example_attention(dtype: DType) -> AttentionProblem:
    return AttentionProblem(
        num_heads=_NUM_HEADS,
        num_kv_heads=_NUM_KV_HEADS,
        head_dim=_HEAD_DIM,
        dtype=dtype,
        block_size=_BLOCK_SIZE,
        spec=AttentionSpec(scale=_HEAD_DIM**-0.5),
    )


def example_linear(dtype: DType) -> LinearProblem:
    return LinearProblem(in_features=_HIDDEN_SIZE, out_features=_INTERMEDIATE_SIZE, dtype=dtype)


def _layer_sites(dtype: DType) -> tuple[Site, ...]:
    attention = example_attention(dtype)
    rope = RopeProblem(
        num_heads=_NUM_HEADS,
        num_kv_heads=_NUM_KV_HEADS,
        head_dim=_HEAD_DIM,
        rotary_dim=_HEAD_DIM,
        has_norm=False,
        dtype=dtype,
    )
    attention_block = AttentionBlockProblem(
        hidden_size=_HIDDEN_SIZE,
        attention=attention,
        rope=rope,
        has_qkv_bias=False,
        has_output_bias=False,
        norm=NormKind.RMS,
    )
    mlp_block = MlpBlockProblem(
        hidden_size=_HIDDEN_SIZE,
        intermediate_size=_INTERMEDIATE_SIZE,
        activation=Activation.SILU,
        is_gated=True,
        has_bias=False,
        dtype=dtype,
        norm=NormKind.RMS,
    )
    return (
        Site(opset.attention_block, attention_block),
        Site(opset.mlp_block, mlp_block),
        Site(opset.linear, example_linear(dtype)),
        Site(opset.attention, attention),
        Site(opset.qk_norm_rope, rope),
    )


def _expert_sites(dtype: DType) -> tuple[Site, ...]:
    block = MoeBlockProblem(
        num_experts=128,
        top_k=8,
        hidden_size=_HIDDEN_SIZE,
        intermediate_size=768,
        activation=Activation.SILU,
        norm_topk_prob=True,
        dtype=dtype,
    )
    route = RouteProblem(num_experts=block.num_experts, top_k=block.top_k)
    combine = CombineProblem(top_k=block.top_k, width=_HIDDEN_SIZE, dtype=dtype)
    return (
        Site(opset.moe_block, block),
        Site(opset.grouped_linear, block.up),
        Site(opset.route_experts, route),
        Site(opset.combine_experts, combine),
    )


def _row_sites(dtype: DType) -> tuple[Site, ...]:
    norm = NormProblem(hidden_size=_HIDDEN_SIZE, dtype=dtype)
    activation = ActivationProblem(
        width=_INTERMEDIATE_SIZE, activation=Activation.SILU, dtype=dtype
    )
    return (
        Site(opset.rms_norm, norm),
        Site(opset.layer_norm, norm),
        Site(opset.gated_activation, activation),
        Site(opset.plain_activation, activation),
        Site(opset.add, ElementwiseProblem(width=_HIDDEN_SIZE, dtype=dtype)),
    )


def _token_sites(dtype: DType) -> tuple[Site, ...]:
    rows = GatherProblem(width=_HIDDEN_SIZE, dtype=dtype)
    sample = SampleProblem(vocab_size=_VOCAB_SIZE)
    vocab = VocabProblem(
        vocab_size=_VOCAB_SIZE,
        hidden_size=_HIDDEN_SIZE,
        dtype=dtype,
        embeds=True,
        makes_logits=True,
    )
    return (
        Site(opset.vocab, vocab),
        Site(opset.gather_rows, rows),
        Site(opset.store, rows),
        Site(opset.take_tokens, TokenProblem()),
        Site(opset.keep_tokens, TokenProblem()),
        Site(opset.own_tokens, TokenProblem()),
        Site(opset.zero_other_rows, rows),
        Site(opset.adjust_logits, sample),
        Site(opset.mask_logits, sample),
        Site(opset.sample, sample),
        Site(opset.logprobs, sample),
    )
