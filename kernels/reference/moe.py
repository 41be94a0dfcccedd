"""moe_block composed of finer ops, and those that no other block has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from hal.binding import Binder
from hal.device import Device
from hal.dtypes import DType
from hal.kernels.reference.linear import ReferenceLinear, ReferenceQuantizedLinear
from hal.kernels.reference.tensors import as_torch, widen
from hal.opset import (
    combine_experts,
    gated_activation,
    gather_rows,
    grouped_linear,
    moe_block,
    route_experts,
    vocab,
)
from hal.opset.elementwise import ActivationProblem
from hal.opset.indexing import GatherProblem
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.moe import (
    CombineProblem,
    GroupedLinearFamily,
    GroupedLinearProblem,
    MoeBlock,
    MoeBlockProblem,
    RouteProblem,
)
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.select import Level
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def router_problem(problem: MoeBlockProblem) -> VocabProblem:
    """Logits in float32 are what a vocabulary family makes, and nothing else is asked of it."""
    return VocabProblem(
        vocab_size=problem.num_experts,
        hidden_size=problem.hidden_size,
        dtype=problem.dtype,
        embeds=False,
        makes_logits=True,
    )


class RoutingBuffers:
    """What `route_experts` writes, in the step arena: shared by all layers."""

    def __init__(self, problem: MoeBlockProblem, binder: Binder) -> None:
        arena, top_k = binder.arena, problem.top_k
        num_rows = arena.max_tokens * top_k
        self._top_k = top_k
        self.num_rows = num_rows
        self._num_offsets = problem.num_experts + 1
        self._logits = arena.buffer("router_logits", problem.num_experts, DType.FLOAT32)
        self._weights = arena.buffer("expert_weights", top_k, DType.FLOAT32)
        self._slots = arena.buffer("expert_slots", top_k, DType.INT32)
        self._rows = arena.buffer("expert_rows", (), DType.INT32, num_rows)
        self._offsets = arena.buffer("expert_offsets", (), DType.INT32, self._num_offsets)

    def logits(self, num_tokens: int) -> Tensor:
        return self._logits.rows(num_tokens)

    def weights(self, num_tokens: int) -> Tensor:
        return self._weights.rows(num_tokens)

    def slots(self, num_tokens: int) -> Tensor:
        return self._slots.rows(num_tokens)

    def rows(self, num_tokens: int) -> Tensor:
        return self._rows.rows(num_tokens * self._top_k)

    @property
    def offsets(self) -> Tensor:
        return self._offsets.rows(self._num_offsets)


@moe_block.family("composed", preference=10, batch_invariant=True)
class ComposedMoeBlock(MoeBlock):
    """Route, gather, up, activate, down, combine; what is selected for each has its own level."""

    def __init__(self, problem: MoeBlockProblem, binder: Binder) -> None:
        dtype, width = problem.dtype, problem.intermediate_size
        self.router: VocabFamily = binder.bind(vocab, router_problem(problem))
        self.up: GroupedLinearFamily = binder.bind(grouped_linear, problem.up)
        self.down: GroupedLinearFamily = binder.bind(grouped_linear, problem.down)
        self._norms = problem.norm_topk_prob
        self._activation = problem.activation
        route = RouteProblem(num_experts=problem.num_experts, top_k=problem.top_k)
        combine = CombineProblem(top_k=problem.top_k, width=problem.hidden_size, dtype=dtype)
        activate = ActivationProblem(width=width, activation=problem.activation, dtype=dtype)
        self._route = binder.bind(route_experts, route)
        self._gather = binder.bind(
            gather_rows, GatherProblem(width=problem.hidden_size, dtype=dtype)
        )
        self._activate = binder.bind(gated_activation, activate)
        self._combine = binder.bind(combine_experts, combine)
        self._routing = RoutingBuffers(problem, binder)
        arena, rows = binder.arena, self._routing.num_rows
        # What an expert reads is done with before it writes: one buffer for both.
        self._hidden = arena.buffer("expert_hidden", problem.hidden_size, dtype, rows)
        self._up = arena.buffer("expert_up", 2 * width, dtype, rows)
        self._activated = arena.buffer("expert_activated", width, dtype, rows)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        num_tokens, routing = x.shape[0], self._routing
        logits, weights = routing.logits(num_tokens), routing.weights(num_tokens)
        slots, rows = routing.slots(num_tokens), routing.rows(num_tokens)
        offsets, num_rows = routing.offsets, rows.shape[0]
        hidden, up = self._hidden.rows(num_rows), self._up.rows(num_rows)
        activated = self._activated.rows(num_rows)
        self.router.logits(x, logits)
        self._route(logits, self._norms, weights, slots, rows, offsets)
        self._gather(x, rows, hidden)
        self.up(hidden, offsets, up)
        self._activate(up, self._activation, activated)
        self.down(activated, offsets, hidden)
        self._combine(hidden, slots, weights, out)


@route_experts.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def route_experts_reference(
    logits: torch.Tensor,
    norm_topk_prob: bool,
    weights: torch.Tensor,
    slots: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
) -> None:
    """Two stable sorts: of each token's logits, then of all choices by expert."""
    top_k, num_experts = weights.shape[1], logits.shape[1]
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    chosen = torch.softmax(logits, dim=1).gather(1, order)
    weights.copy_(chosen / chosen.sum(dim=1, keepdim=True) if norm_topk_prob else chosen)
    grouped = order.flatten().sort(stable=True)
    rows.copy_(grouped.indices // top_k)
    places = torch.arange(len(rows), device=slots.device, dtype=slots.dtype)
    slots.view(-1).index_copy_(0, grouped.indices, places)
    experts = torch.arange(num_experts + 1, device=logits.device)
    offsets.copy_(torch.searchsorted(grouped.values, experts))


@combine_experts.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def combine_experts_reference(
    y: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor
) -> None:
    """One product and one sum after the other, so that the order is the declared one."""
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for place, weight in zip(slots.unbind(1), weights.unbind(1), strict=True):
        total += weight[:, None] * widen(y.index_select(0, place))
    out.copy_(total)


@grouped_linear.family(
    "reference",
    preference=0,
    level=Level.REFERENCE,
    cost="multiplies every row by every expert and keeps one of the results",
)
class ReferenceGroupedLinear(GroupedLinearFamily):
    """The reference product of each expert on all rows: no row count is read from the device."""

    def __init__(self, problem: GroupedLinearProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        expert = LinearProblem(
            in_features=problem.in_features,
            out_features=problem.out_features,
            dtype=problem.dtype,
            weights=problem.weights,
        )
        kind = ReferenceLinear if problem.weights is None else ReferenceQuantizedLinear
        self._experts: tuple[LinearFamily, ...] = tuple(
            kind(expert, binder) for _ in range(problem.num_experts)
        )

    @property
    def num_bytes(self) -> int:
        return sum(expert.num_bytes for expert in self._experts)

    def allocate(self, device: Device) -> None:
        for expert in self._experts:
            expert.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        load_experts(self._experts, self.problem.out_features, first_row, weight)

    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        target, ends = as_torch(out), as_torch(offsets)[1:]
        places = torch.arange(len(target), device=target.device, dtype=ends.dtype)
        expert_of_row = torch.searchsorted(ends.contiguous(), places, right=True)
        product = torch.empty_like(target)
        for index, expert in enumerate(self._experts):
            expert(x, product)
            target.copy_(torch.where((expert_of_row == index)[:, None], product, target))


class Loadable(Protocol):
    """One expert's weight."""

    def load(self, first_row: int, weight: LogicalWeight, /) -> None: ...


def load_experts(
    experts: Sequence[Loadable], num_rows: int, first_row: int, weight: LogicalWeight
) -> None:
    """Each expert's part of a weight, as GroupedLinearFamily.load counts its rows."""
    values = as_torch(weight.values)
    start = 0
    while start < len(values):
        expert, row = divmod(first_row + start, num_rows)
        part = values[start : start + num_rows - row]
        experts[expert].load(row, replace(weight, values=part))
        start += len(part)
