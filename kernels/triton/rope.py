"""qk_norm_rope: query and key heads of a step in one launch, in place."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.triton.predicates import PREFERENCE, needs_float, unavailable
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.opset import qk_norm_rope
from hal.opset.attention import RopeProblem

_PROGRAM = Program("rope", "qk_norm_rope")
_LARGEST_HEAD = 512


def rope_options(caps: Capabilities, problem: RopeProblem) -> dict[str, int]:
    """Of a launch whose programs own HEADS_BLOCK heads of a token."""
    return {
        **launch_options(caps, "qk_norm_rope"),
        "HEADS": problem.num_heads,
        "KV_HEADS": problem.num_kv_heads,
        "HEAD_DIM": problem.head_dim,
        "ROTARY_DIM": problem.rotary_dim,
        "HALF_BLOCK": next_power_of_2(max(1, problem.rotary_dim // 2)),
        "REST_BLOCK": next_power_of_2(max(1, problem.head_dim - problem.rotary_dim)),
    }


def rejects_rope(caps: Capabilities, problem: RopeProblem) -> str | None:
    if problem.head_dim > _LARGEST_HEAD:
        return f"keeps heads of up to {_LARGEST_HEAD} in registers; head_dim is {problem.head_dim}"
    return needs_float(caps, problem)


@qk_norm_rope.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=rejects_rope,
    unavailable=unavailable,
)
class TritonQkNormRope:
    """Float32 inside, rounded once. Rows of qkv are contiguous."""

    def __init__(self, problem: RopeProblem, binder: Binder) -> None:
        self._options = rope_options(binder.selector.caps, problem)
        num_heads = problem.num_heads + problem.num_kv_heads
        self._num_pieces = -(-num_heads // self._options["HEADS_BLOCK"])

    def __call__(
        self,
        qkv: torch.Tensor,
        problem: RopeProblem,
        positions: torch.Tensor,
        cos_sin: torch.Tensor | None,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        eps: float,
    ) -> None:
        if problem.rotary_dim or q_weight is not None:
            grid = (len(qkv), self._num_pieces)
            tensors = (qkv, positions, cos_sin, q_weight, k_weight)
            _PROGRAM.launch(grid, *tensors, eps, **self._options)
