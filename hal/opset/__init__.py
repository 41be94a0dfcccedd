"""Every op's signature, docstring and problem type; no implementation lives here."""

from hal.opset.attention import attention, qk_norm_rope
from hal.opset.block import attention_block, mlp_block
from hal.opset.elementwise import add, gated_activation, plain_activation
from hal.opset.indexing import (
    gather_rows,
    keep_tokens,
    own_tokens,
    store,
    take_tokens,
    zero_other_rows,
)
from hal.opset.linear import linear
from hal.opset.moe import combine_experts, grouped_linear, moe_block, route_experts
from hal.opset.norm import layer_norm, rms_norm
from hal.opset.sampling import adjust_logits, logprobs, mask_logits, sample
from hal.opset.vocab import vocab

__all__ = [
    "add",
    "adjust_logits",
    "attention",
    "attention_block",
    "combine_experts",
    "gated_activation",
    "gather_rows",
    "grouped_linear",
    "keep_tokens",
    "layer_norm",
    "linear",
    "logprobs",
    "mask_logits",
    "mlp_block",
    "moe_block",
    "own_tokens",
    "plain_activation",
    "qk_norm_rope",
    "rms_norm",
    "route_experts",
    "sample",
    "store",
    "take_tokens",
    "vocab",
    "zero_other_rows",
]
