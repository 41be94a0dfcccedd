"""Keys and values as int8 codes, as hal.kv.KVSpec defines them."""

from __future__ import annotations

import torch

from hal.weights import SMALLEST

SCALE_BYTES = 2


def to_codes(rows: torch.Tensor) -> torch.Tensor:
    """rows [..., head_dim] of any float as int8 [..., head_dim + SCALE_BYTES], the scale last."""
    x = rows.float()
    largest = x.abs().amax(dim=-1, keepdim=True)
    is_zero, is_finite = largest <= SMALLEST, largest.isfinite()
    # Tensors on both sides: torch divides by or into a number as a product with an inverse.
    scales = (largest / torch.full_like(largest, 127.0)).bfloat16()
    inverse = torch.where(is_zero | ~is_finite, 0.0, torch.ones_like(largest) / scales.float())
    codes = torch.round((x * inverse).nan_to_num(0.0)).clamp(-127, 127).to(torch.int8)
    scales = scales.masked_fill(is_zero, 0.0).masked_fill(~is_finite, torch.nan)
    return torch.cat([codes, scales.view(torch.int8)], dim=-1)


def from_codes(stored: torch.Tensor) -> torch.Tensor:
    """Float32 [..., head_dim] of what `to_codes` made."""
    codes, scales = stored[..., :-SCALE_BYTES], stored[..., -SCALE_BYTES:]
    return codes.float() * scales.contiguous().view(torch.bfloat16).float()
