"""qk_norm_rope in place, one pass over each head."""

from __future__ import annotations

from types import ModuleType

import torch

from hal.device import Capabilities
from hal.kernels.cpu import native
from hal.opset import qk_norm_rope
from hal.opset.attention import RopeProblem

MAX_HEAD_DIM = 512  # kMaxHeadDim of src/rope_avx512.cpp and src/portable_rows.h


def too_long(problem: RopeProblem) -> str | None:
    """Why no kernel here holds a head."""
    if problem.head_dim > MAX_HEAD_DIM:
        return f"holds heads of up to {MAX_HEAD_DIM} elements; head_dim is {problem.head_dim}"
    return None


def rejects_rope(caps: Capabilities, problem: RopeProblem) -> str | None:
    return too_long(problem) or native.needs_avx512_bf16(caps, problem)


@qk_norm_rope.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=rejects_rope,
    unavailable=native.unavailable,
)
def qk_norm_rope_avx512(
    qkv: torch.Tensor,
    problem: RopeProblem,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """Float32 inside, rounded once."""
    rotate(native.load(), qkv, problem, positions, cos_sin, q_weight, k_weight, eps)


def rotate(
    part: ModuleType,
    qkv: torch.Tensor,
    problem: RopeProblem,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """By the kernel of one part of the native module."""
    part.qk_norm_rope(
        qkv.data_ptr(),
        qkv.stride(0),
        qkv.shape[0],
        problem.num_heads,
        problem.num_kv_heads,
        problem.head_dim,
        positions.data_ptr(),
        0 if cos_sin is None else cos_sin.data_ptr(),
        problem.rotary_dim,
        0 if q_weight is None else q_weight.data_ptr(),
        0 if k_weight is None else k_weight.data_ptr(),
        eps,
        native.TORCH_CODES[qkv.dtype],
        torch.get_num_threads(),
    )
