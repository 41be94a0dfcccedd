"""The coarse ops that model files call; their composed form calls finer ops.

A backend may register a fused kernel at this level; model files never change for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hal.binding import Binder
from hal.dtypes import DType
from hal.opset.attention import AttentionFamily, AttentionProblem, RopeProblem
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily
from hal.opset.norm import NormInput, NormKind
from hal.select import declare
from hal.tensor import Tensor
from hal.weights import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBlockProblem:
    """Projection to qkv, position encoding, paged attention, output projection.

    weights: of both projections, as in LinearProblem.
    norm: which one callers may ask for in front; None: none
    """

    hidden_size: int
    attention: AttentionProblem
    rope: RopeProblem
    has_qkv_bias: bool
    has_output_bias: bool
    weights: WeightFormat | None = None
    norm: NormKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """Per-layer vectors and tables that are no linear weights; None where the model has none."""

    cos_sin: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    norm_eps: float


class AttentionBlock(ABC):
    """One layer's attention: owns its two linear families, shares an attention family."""

    qkv: LinearFamily
    output: LinearFamily
    family: AttentionFamily

    @abstractmethod
    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        kv: Tensor,
        weights: AttentionWeights,
        out: Tensor,
        norm: NormInput | None = None,
    ) -> None:
        """x, out [T, hidden_size]; positions [T] int32; kv: this layer's cache, written and read.

        norm: what x is first written as the norm of, and its residual with it.
        `family.plan` must have been called for this step. `out` is a partial sum over ranks.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpBlockProblem:
    """down(activation(gate(x)) * up(x)) where gated, else down(activation(up(x))).

    weights: of all of them, as in LinearProblem.
    norm: which one callers may ask for in front; None: none
    """

    hidden_size: int
    intermediate_size: int
    activation: Activation
    is_gated: bool
    has_bias: bool
    dtype: DType
    weights: WeightFormat | None = None
    norm: NormKind | None = None


class MlpBlock(ABC):
    """One layer's MLP. `up` holds gate rows then up rows where gated."""

    up: LinearFamily
    down: LinearFamily

    @abstractmethod
    def __call__(self, x: Tensor, out: Tensor, norm: NormInput | None = None) -> None:
        """x, out [T, hidden_size]. `out` is a partial sum over ranks.

        norm: what x is first written as the norm of, and its residual with it.
        """


@declare(AttentionBlockProblem)
def attention_block(problem: AttentionBlockProblem, binder: Binder) -> AttentionBlock:
    """A bound AttentionBlock of one layer."""
    raise AssertionError("a declaration is never called")


@declare(MlpBlockProblem)
def mlp_block(problem: MlpBlockProblem, binder: Binder) -> MlpBlock:
    """A bound MlpBlock of one layer."""
    raise AssertionError("a declaration is never called")
