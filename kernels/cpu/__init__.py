"""CPU kernels: Python wrappers of the native module."""

from hal.kernels.cpu import (
    amx,
    attention,
    attention_block,
    block,
    elementwise,
    experts,
    indexing,
    linear,
    norm,
    portable,
    portable_attention,
    portable_rows,
    recording,
    rope,
    sampling,
    vocab,
)
from hal.kernels.cpu.native import compiled_part

__all__ = [
    "amx",
    "attention",
    "attention_block",
    "block",
    "compiled_part",
    "elementwise",
    "experts",
    "indexing",
    "linear",
    "norm",
    "portable",
    "portable_attention",
    "portable_rows",
    "recording",
    "rope",
    "sampling",
    "vocab",
]
