"""Triton kernels shared by every vendor that Triton compiles for."""

from hal.kernels.triton import (
    attention,
    attention_block,
    elementwise,
    experts,
    indexing,
    linear,
    logits,
    norm,
    rope,
    sampling,
    vocab,
)
from hal.kernels.triton.source import compiled_part

__all__ = [
    "attention",
    "attention_block",
    "compiled_part",
    "elementwise",
    "experts",
    "indexing",
    "linear",
    "logits",
    "norm",
    "rope",
    "sampling",
    "vocab",
]
