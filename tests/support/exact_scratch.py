"""Scratch memory with no room behind what is declared: there AddressSanitizer sees an overrun."""

from __future__ import annotations

import torch

from hal.binding import Buffer
from hal.dtypes import DType
from hal.kernels.cpu.quantized_weight import QuantizedWeight


def give_exact_scratch(weight: QuantizedWeight, num_tokens: int, dtype: DType) -> None:
    """A step of `num_tokens` in dtype fills it; the arena's is as large as any step's."""
    buffer = Buffer((num_tokens, weight.scratch_bytes(dtype)), DType.UINT8)
    buffer.place(torch.empty(buffer.shape, dtype=torch.uint8))
    weight.scratch = buffer
