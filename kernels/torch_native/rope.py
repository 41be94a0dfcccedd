"""qk_norm_rope over query and key heads in one pass."""

from __future__ import annotations

import torch

from hal.kernels.reference.rope import normalise, rotate
from hal.kernels.reference.tensors import widen
from hal.kernels.torch_native.predicates import needs_float
from hal.opset import qk_norm_rope
from hal.opset.attention import RopeProblem
from hal.select import on_accelerators


@qk_norm_rope.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_float, batch_invariant=True
)
def qk_norm_rope_torch(
    qkv: torch.Tensor,
    problem: RopeProblem,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """Query and key heads lie side by side: one upcast, one rotation, one rounding for both."""
    num_heads = problem.num_heads + problem.num_kv_heads
    heads = qkv[:, : num_heads * problem.head_dim].view(-1, num_heads, problem.head_dim)
    weight = None
    if q_weight is not None and k_weight is not None:
        rows = [q_weight.expand(problem.num_heads, -1), k_weight.expand(problem.num_kv_heads, -1)]
        weight = torch.cat(rows)
    angles = None if cos_sin is None else cos_sin.index_select(0, positions)
    heads.copy_(rotate(normalise(widen(heads), weight, eps), angles, problem.rotary_dim))
