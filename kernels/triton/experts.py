"""Mixture of experts: choices, and products of all experts in one launch; no count is read back."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.dtypes import DType
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import rounds_activations
from hal.kernels.triton import quantized
from hal.kernels.triton.elementwise import RowPieces
from hal.kernels.triton.predicates import PREFERENCE, needs_card, needs_float, unavailable
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.opset import combine_experts, grouped_linear, route_experts
from hal.opset.moe import (
    CombineProblem,
    GroupedLinearFamily,
    GroupedLinearProblem,
    RouteProblem,
)
from hal.tensor import Tensor
from hal.weights import LogicalWeight

_CHOOSE = Program("moe", "choose_experts")
_PLACE = Program("moe", "place_choices")
_COMBINE = Program("moe", "combine_experts")


def _rejects(caps: Capabilities, problem: GroupedLinearProblem) -> str | None:
    if problem.weights is None:
        return needs_float(caps, problem)
    return quantized.rejects_columns(problem, problem.in_features) or quantized.rejects(
        caps, problem
    )


@grouped_linear.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=rounds_activations,
    rejects=_rejects,
    unavailable=unavailable,
    regimes=quantized.expert_regimes,
)
class TritonGroupedLinear(GroupedLinearFamily):
    """x and out are contiguous. Each expert's product is that of `linear`."""

    def __init__(self, problem: GroupedLinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        shape = quantized.MatrixShape(
            rows=problem.out_features,
            columns=problem.in_features,
            num_experts=problem.num_experts,
            top_k=problem.top_k,
        )
        self._matrix = (
            quantized.PlainMatrix(shape, problem.dtype, binder)
            if problem.weights is None
            else quantized.stored_matrix(shape, problem.weights, binder)
        )

    @property
    def num_bytes(self) -> int:
        return self._matrix.num_bytes

    def allocate(self, device: Device) -> None:
        self._matrix.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._matrix.load(first_row, weight)

    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        self._matrix.multiply(as_torch(x), as_torch(out), offsets=as_torch(offsets))


@route_experts.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_card,
    unavailable=unavailable,
)
class TritonRouteExperts:
    """Two launches: a program for each token chooses, then one for each expert places."""

    def __init__(self, problem: RouteProblem, binder: Binder) -> None:
        caps, top_k = binder.selector.caps, problem.top_k
        shared = {"EXPERTS": problem.num_experts, "TOP_K": top_k}
        self._num_experts = problem.num_experts
        self._choose = {
            **launch_options(caps, "choose_experts"),
            **shared,
            "BLOCK": next_power_of_2(problem.num_experts),
            "TOP_BLOCK": next_power_of_2(top_k),
        }
        self._place = {**launch_options(caps, "place_choices"), **shared}
        self._chosen = binder.arena.buffer("chosen_experts", top_k, DType.INT32)

    def __call__(
        self,
        logits: torch.Tensor,
        norm_topk_prob: bool,
        weights: torch.Tensor,
        slots: torch.Tensor,
        rows: torch.Tensor,
        offsets: torch.Tensor,
    ) -> None:
        num_tokens = len(logits)
        chosen = as_torch(self._chosen.rows(num_tokens))
        _CHOOSE.launch((num_tokens,), logits, weights, chosen, NORMS=norm_topk_prob, **self._choose)
        outputs = (slots, rows, offsets)
        _PLACE.launch((self._num_experts,), chosen, *outputs, len(rows), **self._place)


@combine_experts.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_float,
    unavailable=unavailable,
)
class TritonCombineExperts:
    """A row of each choice is read once."""

    def __init__(self, problem: CombineProblem, binder: Binder) -> None:
        self._pieces = RowPieces(problem.width, binder)
        self._options = {**self._pieces.options, "TOP_K": problem.top_k}

    def __call__(
        self, y: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
    ) -> None:
        _COMBINE.launch(self._pieces.grid(len(out)), y, slots, weights, out, **self._options)
