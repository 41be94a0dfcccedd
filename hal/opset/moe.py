"""Mixture of experts: a router chooses a few of many MLPs for each token.

`moe_block` is what model files call. Its composed form calls the finer ops of this file: route,
gather the tokens of each expert behind each other, multiply each run of rows by its own expert's
weight (a grouped product), and sum what comes back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hal.binding import Binder
from hal.device import Device
from hal.dtypes import DType
from hal.opset.elementwise import Activation
from hal.opset.stored import StoredForm
from hal.opset.vocab import VocabFamily
from hal.select import declare
from hal.tensor import Tensor
from hal.weights import LogicalWeight, WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedLinearProblem:
    """out[i] = x[i] @ weight[e].T for the rows i of group e; accumulates in float32.

    weight [num_experts, out_features, in_features]; dtype and weights as in LinearProblem.
    top_k: rows that a step has for each of its tokens, at most
    """

    num_experts: int
    in_features: int
    out_features: int
    dtype: DType
    weights: WeightFormat | None = None
    top_k: int = 1


class GroupedLinearFamily(ABC):
    """The weights of all experts in the layout of this family, and the product with them."""

    def __init__(self, problem: GroupedLinearProblem, binder: Binder) -> None:
        self.problem = problem

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that `allocate` takes."""

    @abstractmethod
    def allocate(self, device: Device) -> None:
        """Take the memory; rows may then be loaded in any order."""

    @abstractmethod
    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Store rows first_row.. of all experts' rows behind each other.

        Row r of expert e is row e * out_features + r; a weight may hold rows of several experts.
        """

    def stored(self) -> StoredForm | None:
        """As of a LinearFamily."""
        return None

    @abstractmethod
    def __call__(self, x: Tensor, offsets: Tensor, out: Tensor) -> None:
        """x [M, in_features], out [M, out_features]; writes `out`.

        Rows offsets[e] to offsets[e + 1] - 1 are expert e's: offsets [num_experts + 1] int32, from
        0 to M, never falling.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteProblem:
    """The top_k of num_experts for each token."""

    num_experts: int
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineProblem:
    """top_k rows of `width` elements in `dtype` make one."""

    top_k: int
    width: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeBlockProblem:
    """sum over the top_k experts of weight * down(activation(gate(x)) * up(x)).

    norm_topk_prob: the weights of the chosen are scaled to sum to 1
    weights: of the experts, as in LinearProblem; the router stays in dtype
    """

    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    activation: Activation
    norm_topk_prob: bool
    dtype: DType
    weights: WeightFormat | None = None

    @property
    def up(self) -> GroupedLinearProblem:
        """Each expert's gate rows, then its up rows."""
        return GroupedLinearProblem(
            num_experts=self.num_experts,
            in_features=self.hidden_size,
            out_features=2 * self.intermediate_size,
            dtype=self.dtype,
            weights=self.weights,
            top_k=self.top_k,
        )

    @property
    def down(self) -> GroupedLinearProblem:
        return GroupedLinearProblem(
            num_experts=self.num_experts,
            in_features=self.intermediate_size,
            out_features=self.hidden_size,
            dtype=self.dtype,
            weights=self.weights,
            top_k=self.top_k,
        )


class MoeBlock(ABC):
    """One layer's experts. `router` makes a logit for each expert, in float32 and unrounded: an
    expert more or less is no rounding error."""

    router: VocabFamily
    up: GroupedLinearFamily
    down: GroupedLinearFamily

    @abstractmethod
    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x, out [T, hidden_size]. `out` is a partial sum over ranks.

        Experts are chosen and weighted as `route_experts` says, their results rounded to dtype and
        summed in float32.
        """


@declare(GroupedLinearProblem)
def grouped_linear(problem: GroupedLinearProblem, binder: Binder) -> GroupedLinearFamily:
    """A bound GroupedLinearFamily: rows that stand together for each expert, by its weight.

    Source: grouped GEMM, as MegaBlocks (Gale et al. 2022) uses it for experts of unequal load.
    """
    raise AssertionError("a declaration is never called")


@declare(RouteProblem)
def route_experts(
    logits: Tensor,
    norm_topk_prob: bool,
    weights: Tensor,
    slots: Tensor,
    rows: Tensor,
    offsets: Tensor,
) -> None:
    """Choose each token's experts, and a place for each choice among the rows of its expert.

    logits [T, num_experts] float32. Chosen are the top_k largest, of equal ones the lower expert.
    weights [T, top_k] float32: softmax over all experts, from the largest; scaled to sum to 1 with
    norm_topk_prob. A logit of NaN or +infinity makes its token's weights NaN, its experts any.
    slots [T, top_k] int32: the row of each choice, grouped by expert, in the order of the tokens
    rows [T * top_k] int32: the token of each such row; offsets as of GroupedLinearFamily

    Source: Shazeer et al. 2017; softmax before the choice as in Mixtral (Jiang et al. 2024).
    """


@declare(CombineProblem)
def combine_experts(y: Tensor, slots: Tensor, weights: Tensor, out: Tensor) -> None:
    """out[t] = sum over j of weights[t, j] * y[slots[t, j]], in float32 from the first j.

    y [T * top_k, width], out [T, width] in dtype; slots, weights as of route_experts
    """


@declare(MoeBlockProblem)
def moe_block(problem: MoeBlockProblem, binder: Binder) -> MoeBlock:
    """A bound MoeBlock of one layer."""
    raise AssertionError("a declaration is never called")
