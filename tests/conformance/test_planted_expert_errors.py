"""What goes wrong with experts: each planted error must be caught by the check that is meant to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hal.binding import Binder
from hal.conformance.cases import cases_by_op
from hal.conformance.run import conform
from hal.devices.null import NullDevice
from hal.kernels import register_all
from hal.kernels.reference.moe import (
    ComposedMoeBlock,
    ReferenceGroupedLinear,
    combine_experts_reference,
    route_experts_reference,
)
from hal.kernels.reference.tensors import as_torch
from hal.opset.moe import MoeBlockProblem
from hal.select import Kernel, Traits
from hal.tensor import Tensor

register_all()


def route_takes_the_higher_of_ties(logits: torch.Tensor, norm: bool, *outs: torch.Tensor) -> None:
    """Sorted from the last expert, so a stable sort finds that one first."""
    weights, slots, rows, offsets = outs
    flipped = [torch.empty_like(out) for out in (weights, slots, rows, offsets)]
    route_experts_reference(logits.flip(1), norm, *flipped)
    weights.copy_(flipped[0])
    expert = logits.shape[1] - 1 - torch.searchsorted(flipped[3][1:], flipped[1], right=True)
    order = expert.flatten().sort(stable=True)
    slots.view(-1)[order.indices] = torch.arange(len(rows), dtype=slots.dtype)
    rows.copy_(order.indices // slots.shape[1])
    offsets.copy_(torch.searchsorted(order.values, torch.arange(len(offsets))))


def route_never_norms(logits: torch.Tensor, norm: bool, *outs: torch.Tensor) -> None:
    route_experts_reference(logits, False, *outs)


def route_over_the_chosen_only(logits: torch.Tensor, norm: bool, *outs: torch.Tensor) -> None:
    route_experts_reference(logits, True, *outs)


def route_hides_bad_rows(logits: torch.Tensor, norm: bool, *outs: torch.Tensor) -> None:
    route_experts_reference(logits.nan_to_num(), norm, *outs)


def route_groups_backwards(logits: torch.Tensor, norm: bool, *outs: torch.Tensor) -> None:
    """Within an expert the last token first: right sums, but not the declared places."""
    weights, slots, rows, offsets = outs
    route_experts_reference(logits, norm, *outs)
    ends = offsets[torch.searchsorted(offsets[1:], slots, right=True) + 1]
    starts = offsets[torch.searchsorted(offsets[1:], slots, right=True)]
    slots.copy_(starts + ends - 1 - slots)
    rows[slots.flatten().long()] = torch.arange(slots.numel(), dtype=rows.dtype) // slots.shape[1]


def combine_without_weights(
    y: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
) -> None:
    combine_experts_reference(y, slots, torch.full_like(weights, float(weights.mean())), out)


class FirstExpertTakesAll(ReferenceGroupedLinear):
    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        self._experts[0](x, out)


class OneRowIsTheNextExperts(ReferenceGroupedLinear):
    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        shifted = as_torch(offsets).clone()
        shifted[1:-1] = (shifted[1:-1] - 1).clamp(min=0)
        super().__call__(x, shifted, out)


class IdleExpertsShiftTheRest(ReferenceGroupedLinear):
    """Numbers only the experts that have rows."""

    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        counts = as_torch(offsets).diff()
        busy = counts[counts > 0]
        packed = torch.full_like(as_torch(offsets), int(as_torch(offsets)[-1]))
        packed[0], packed[1 : len(busy) + 1] = 0, busy.cumsum(0)
        super().__call__(x, packed, out)


class DropsTheLastExpert(ComposedMoeBlock):
    def __init__(self, problem: MoeBlockProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._route = _without_the_last


def _without_the_last(logits: torch.Tensor, norm: bool, *outs: torch.Tensor) -> None:
    route_experts_reference(logits, norm, *outs)
    outs[0][:, -1] = 0.0


@dataclass(frozen=True, slots=True)
class Plant:
    """A wrong kernel, a case of its op, and the quantity that must fail."""

    kernel: Callable[..., Any]
    op: str
    case: str
    caught_by: str

    def registered(self) -> Kernel:
        wrong = self.kernel
        bind = wrong if isinstance(wrong, type) else lambda _problem, _binder: wrong
        return Kernel(self.op, wrong.__name__, Traits(preference=0), bind, wrong)


PLANTS = (
    Plant(route_takes_the_higher_of_ties, "route_experts", "E16-k4-norm-ties-float32", "slots"),
    Plant(route_never_norms, "route_experts", "E8-k2-norm-float32", "weights"),
    Plant(route_over_the_chosen_only, "route_experts", "E128-k8-float32", "weights"),
    Plant(route_hides_bad_rows, "route_experts", "E8-k2-float32", "tokens with NaN weights"),
    Plant(route_groups_backwards, "route_experts", "E8-k2-float32", "slots"),
    Plant(combine_without_weights, "combine_experts", "k2-W33-float32", "out"),
    Plant(FirstExpertTakesAll, "grouped_linear", "plain-E4-K64-N48-bfloat16", "out"),
    Plant(OneRowIsTheNextExperts, "grouped_linear", "int8-E4-K64-N48-float32", "out"),
    Plant(IdleExpertsShiftTheRest, "grouped_linear", "plain-E4-K64-N48-float32", "out, every"),
    Plant(DropsTheLastExpert, "moe_block", "plain-all-bfloat16", "out"),
)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.kernel.__name__)
def test_planted_error_is_caught(plant: Plant) -> None:
    case = next(case for case in cases_by_op()[plant.op] if case.label == plant.case)
    record = conform(plant.registered(), case, NullDevice())
    assert not record.raised, record.raised
    caught = [c.quantity for c in record.failures if c.quantity.startswith(plant.caught_by)]
    assert caught, f"not caught: {[str(c) for c in record.checks]}"
