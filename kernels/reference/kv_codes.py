"""Keys and values as codes of 8 bits, as hal.kv.KVSpec defines them."""

from __future__ import annotations

import torch

from hal.dtypes import DType
from hal.kv import KV_SCALE_BYTES
from hal.weights import SMALLEST

_LARGEST = {DType.INT8: 127.0, DType.FLOAT8_E4M3FN: 448.0}


def to_codes(rows: torch.Tensor, format: DType) -> torch.Tensor:
    """rows [..., head_dim] of any float as bytes [..., head_dim + KV_SCALE_BYTES], the scale last;
    int8."""
    x, top = rows.float(), _LARGEST[format]
    largest = x.abs().amax(dim=-1, keepdim=True)
    is_zero, is_finite = largest <= SMALLEST, largest.isfinite()
    # Tensors on both sides: torch divides by or into a number as a product with an inverse.
    scales = (largest / torch.full_like(largest, top)).bfloat16()
    inverse = torch.where(is_zero | ~is_finite, 0.0, torch.ones_like(largest) / scales.float())
    exact = (x * inverse).nan_to_num(0.0)
    if format is DType.INT8:
        codes = torch.round(exact).clamp(-top, top).to(torch.int8)
    else:
        codes = exact.clamp(-top, top).to(torch.float8_e4m3fn).view(torch.int8)
    scales = scales.masked_fill(is_zero, 0.0).masked_fill(~is_finite, torch.nan)
    return torch.cat([codes, scales.view(torch.int8)], dim=-1)


def from_codes(stored: torch.Tensor, format: DType) -> torch.Tensor:
    """Float32 [..., head_dim] of what `to_codes` made."""
    codes, scales = stored[..., :-KV_SCALE_BYTES], stored[..., -KV_SCALE_BYTES:]
    if format is not DType.INT8:
        codes = codes.view(torch.float8_e4m3fn)
    return codes.float() * scales.contiguous().view(torch.bfloat16).float()
