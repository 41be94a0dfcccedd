"""A layer's second half as a mixture of experts, and the names of its checkpoint tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hal import opset
from hal.engine.layers.builder import ACTIVATIONS, Builder
from hal.engine.layers.parameters import Parallel, Parameter, Part, WeightFamily
from hal.opset.moe import GroupedLinearFamily, MoeBlock, MoeBlockProblem
from hal.opset.norm import NormInput
from hal.tensor import Tensor
from hal.weights import LogicalWeight

EXPERT = "{expert}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """Tensor names of one layer in one layout.

    With EXPERT in them there is a tensor for each expert, and `up` names gate and up apart. Else
    one tensor has all experts, [num_experts, outputs, inputs], gate rows before up rows.
    """

    router: str
    up: tuple[str, ...]
    down: tuple[str, ...]


class Experts:
    """One layer's router and experts with the norm in front, reduced over ranks."""

    def __init__(self, build: Builder, layouts: Sequence[ExpertNames]) -> None:
        config, experts = build.config, build.config.experts
        assert experts is not None, f"{config.model_type} has no experts"
        problem = MoeBlockProblem(
            num_experts=experts.num_experts,
            top_k=experts.top_k,
            hidden_size=config.hidden_size,
            intermediate_size=experts.intermediate_size,
            activation=ACTIVATIONS[config.activation],
            norm_topk_prob=experts.norm_topk_prob,
            dtype=build.options.dtype,
            weights=build.options.weights,
        )
        self._norm = build.binder.bind(opset.rms_norm, build.norm_problem())
        self._block: MoeBlock = build.binder.bind(opset.moe_block, problem)
        self._reduce = build.collective.all_reduce
        for family in (self._block.router, self._block.up, self._block.down):
            build.parameters.own(family)
        build.parameters.either(*(tuple(_parameters(self._block, n)) for n in layouts))

    def __call__(self, x: Tensor, out: Tensor, norm: NormInput) -> None:
        """As Mlp."""
        self._norm(norm.values, norm.residual, norm.weight, norm.eps, x)
        self._block(x, out)
        self._reduce(out)


def _parameters(block: MoeBlock, names: ExpertNames) -> Iterator[Parameter]:
    """The experts first: their names tell one layout from another."""
    yield from _expert_parameters(block.up, names.up, Parallel.COLUMN)
    yield from _expert_parameters(block.down, names.down, Parallel.ROW)
    router = block.router
    yield Parameter(
        name=names.router,
        shape=(router.problem.vocab_size, router.problem.hidden_size),
        parallel=Parallel.REPLICATED,
        parts=(Part(load=_loader(router, 0)),),
        family=router,
    )


def _expert_parameters(
    family: GroupedLinearFamily, names: tuple[str, ...], parallel: Parallel
) -> Iterator[Parameter]:
    p = family.problem
    is_fused = EXPERT not in names[0]
    num_rows = p.out_features // len(names)
    shape = (p.num_experts, num_rows, p.in_features) if is_fused else (num_rows, p.in_features)
    for expert in range(1 if is_fused else p.num_experts):
        for index, name in enumerate(names):
            first_row = expert * p.out_features + index * num_rows
            yield Parameter(
                name=name.replace(EXPERT, str(expert)),
                shape=shape,
                parallel=parallel,
                parts=(Part(load=_loader(family, first_row)),),
                family=family,
                first_row=first_row,
            )


def _loader(family: WeightFamily, first_row: int) -> Callable[[LogicalWeight], None]:
    def load(weight: LogicalWeight) -> None:
        *leading, columns = weight.values.shape
        rows = weight.values.view(math.prod(leading), columns)
        family.load(first_row, replace(weight, values=rows))

    return load
