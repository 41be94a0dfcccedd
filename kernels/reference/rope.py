"""qk_norm_rope: heads normalised and rotated in float32, rounded once."""

from __future__ import annotations

import torch

from hal.kernels.reference.tensors import widen
from hal.opset import qk_norm_rope
from hal.opset.attention import RopeProblem
from hal.select import Level


@qk_norm_rope.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def qk_norm_rope_reference(
    qkv: torch.Tensor,
    problem: RopeProblem,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """Queries, then keys, each as [T, heads, head_dim]; values are not touched."""
    q_width = problem.num_heads * problem.head_dim
    k_width = problem.num_kv_heads * problem.head_dim
    angles = None if cos_sin is None else cos_sin.index_select(0, positions)
    for first, width, weight in ((0, q_width, q_weight), (q_width, k_width, k_weight)):
        heads = qkv[:, first : first + width].view(-1, width // problem.head_dim, problem.head_dim)
        heads.copy_(rotate(normalise(widen(heads), weight, eps), angles, problem.rotary_dim))


def normalise(heads: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMS norm of heads [T, heads, head_dim]; weight [head_dim] or [heads, head_dim]."""
    if weight is None:
        return heads
    mean_square = (heads * heads).mean(dim=-1, keepdim=True)
    return heads * torch.rsqrt(mean_square + eps) * weight


def rotate(heads: torch.Tensor, angles: torch.Tensor | None, rotary_dim: int) -> torch.Tensor:
    """heads [T, heads, head_dim]; angles [T, rotary_dim], cosines then sines."""
    if rotary_dim == 0:
        return heads
    assert angles is not None, f"rotary_dim {rotary_dim} needs a table"
    cos, sin = angles.unsqueeze(1).chunk(2, dim=-1)
    first, second = heads[..., :rotary_dim].chunk(2, dim=-1)
    rest = heads[..., rotary_dim:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
