"""From the engine's view of a tensor to torch's, and the precision that references compute in."""

from __future__ import annotations

import torch

from hal.tensor import Tensor


def as_torch(x: Tensor) -> torch.Tensor:
    """The torch tensor that a torch device hands out; kernels of this folder take no other kind."""
    assert isinstance(x, torch.Tensor), f"{type(x).__name__} is not a torch tensor"
    return x


def widen(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32, or as it is when it is float64 already."""
    return x if x.dtype is torch.float64 else x.float()


def raw_bytes(x: torch.Tensor) -> memoryview:
    """The very memory of a contiguous host tensor, writable."""
    return x.view(-1).view(torch.uint8).numpy().data
