"""grouped_linear and moe_block on packed weights: the experts of a layer in one native call.

Each piece of its work is a run of one expert's rows with all tokens of that expert, so a step
reads the weights of every expert that it uses once, and those of others never.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import ClassVar

import torch

from hal.binding import Binder
from hal.device import Device
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.linear import stored_form
from hal.kernels.cpu.packed_weight import LANES, PackedWeight
from hal.kernels.cpu.products import (
    AVX512_BF16,
    AVX512_DECODED,
    AVX512_VNNI,
    expert_regimes,
)
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.kernels.cpu.threads import PLACEMENT
from hal.kernels.cpu.vocab import PackedVocab
from hal.kernels.reference.moe import RoutingBuffers, load_experts, router_problem
from hal.kernels.reference.tensors import as_torch
from hal.opset import grouped_linear, moe_block
from hal.opset.moe import GroupedLinearFamily, GroupedLinearProblem, MoeBlock, MoeBlockProblem
from hal.opset.stored import StoredForm
from hal.opset.vocab import VocabFamily
from hal.tensor import Tensor
from hal.weights import LogicalWeight

_NO_CODES = (0, False, -1)


@AVX512_DECODED.of(grouped_linear, regimes=expert_regimes)
@AVX512_VNNI.of(grouped_linear, regimes=expert_regimes)
@AVX512_BF16.of(grouped_linear, regimes=expert_regimes)
class PackedExperts(GroupedLinearFamily):
    """The weights of all experts behind each other, each laid out as that of a linear layer.

    is_gated: as in PackedWeight, of every expert
    """

    @staticmethod
    def products() -> ModuleType:
        """The functions of the instruction set that multiplies them."""
        return native.load()

    def __init__(
        self, problem: GroupedLinearProblem, binder: Binder, *, is_gated: bool = False
    ) -> None:
        super().__init__(problem, binder)
        self._experts = tuple(self._expert(is_gated) for _ in range(problem.num_experts))

    def _expert(self, is_gated: bool) -> PackedWeight | QuantizedWeight:
        p, products = self.problem, self.products
        rows, columns = p.out_features, p.in_features
        if p.weights is None:
            return PackedWeight(rows, columns, p.dtype, is_gated=is_gated, products=products)
        return QuantizedWeight(rows, columns, p.weights, is_gated=is_gated, products=products)

    @property
    def num_bytes(self) -> int:
        return self.problem.num_experts * self._experts[0].num_bytes

    def allocate(self, device: Device) -> None:
        memory = as_torch(device.empty((self.num_bytes,), DType.UINT8))
        PLACEMENT.prepare(memory.data_ptr(), self.num_bytes)
        for expert, part in zip(self._experts, memory.chunk(self.problem.num_experts), strict=True):
            expert.place(part)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        load_experts(self._experts, self.problem.out_features, first_row, weight)

    def stored(self) -> StoredForm:
        first, *others = self._experts
        return stored_form(self.problem, first, *(expert.raw_bytes() for expert in others))

    @property
    def place(self) -> tuple[int, int]:
        """Where the native module finds the first expert, and how far the next is."""
        return self._experts[0].address, self._experts[0].num_bytes

    @property
    def layout(self) -> tuple[int, bool, int]:
        """How it reads one: group size, zero points, and the kind of codes."""
        expert = self._experts[0]
        if isinstance(expert, PackedWeight):
            return _NO_CODES
        return expert.group_size, expert.has_zeros, expert.codes

    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        p, source, target = self.problem, as_torch(x), as_torch(out)
        assert source.stride(1) == 1 and target.stride(1) == 1, "columns must be contiguous"
        self.products().grouped_linear(
            source.data_ptr(),
            native.TORCH_CODES[source.dtype],
            source.stride(0),
            as_torch(offsets).data_ptr(),
            p.num_experts,
            *self.place,
            p.out_features,
            p.in_features,
            *self.layout,
            target.data_ptr(),
            target.stride(0),
            torch.get_num_threads(),
        )


def cannot_alternate(problem: MoeBlockProblem) -> str | None:
    size = problem.intermediate_size
    if size % LANES != 0:
        return f"alternates gate and up every {LANES} rows; intermediate_size is {size}"
    return None


@AVX512_DECODED.of(moe_block, cannot_alternate, expert_regimes)
@AVX512_VNNI.of(moe_block, cannot_alternate, expert_regimes)
@AVX512_BF16.of(moe_block, cannot_alternate, expert_regimes)
class FusedMoeBlock(MoeBlock):
    """Router, choice, both products and the sum are one call, with no Python in between.

    The activation is inside the first product, and tokens are gathered where it reads them.
    """

    router_family: ClassVar[type[PackedVocab]] = PackedVocab
    experts_family: ClassVar[type[PackedExperts]] = PackedExperts

    def __init__(self, problem: MoeBlockProblem, binder: Binder) -> None:
        self.problem = problem
        self._router = self.router_family(router_problem(problem), binder)
        self._up = self.experts_family(problem.up, binder, is_gated=True)
        self._down = self.experts_family(problem.down, binder)
        self.router: VocabFamily = self._router
        self.up: GroupedLinearFamily = self._up
        self.down: GroupedLinearFamily = self._down
        self._routing = RoutingBuffers(problem, binder)
        arena, rows, dtype = binder.arena, self._routing.num_rows, problem.dtype
        self._activated = arena.buffer("expert_activated", problem.intermediate_size, dtype, rows)
        self._hidden = arena.buffer("expert_hidden", problem.hidden_size, dtype, rows)
        self._run = native.Repeated()

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._run(self._prepare, x, out)

    def _prepare(self, x: Tensor, out: Tensor) -> partial[object]:
        p, source, target = self.problem, as_torch(x), as_torch(out)
        assert source.stride(1) == 1 and target.stride(1) == 1, "columns must be contiguous"
        num_tokens, routing = source.shape[0], self._routing
        num_rows = num_tokens * p.top_k
        buffers = (
            routing.logits(num_tokens),
            routing.weights(num_tokens),
            routing.slots(num_tokens),
            routing.rows(num_tokens),
            routing.offsets,
            self._activated.rows(num_rows),
            self._hidden.rows(num_rows),
        )
        return partial(
            self._up.products().moe,
            source.data_ptr(),
            native.TORCH_CODES[source.dtype],
            source.stride(0),
            num_tokens,
            self._router.address,
            p.num_experts,
            p.top_k,
            p.norm_topk_prob,
            p.hidden_size,
            p.intermediate_size,
            *self._up.place,
            *self._down.place,
            *self._up.layout,
            native.ACTIVATION_CODES[p.activation],
            *(as_torch(buffer).data_ptr() for buffer in buffers),
            target.data_ptr(),
            target.stride(0),
        )
