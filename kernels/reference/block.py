"""attention_block and mlp_block composed of finer ops, each of which is selected on its own.

The composed form runs no arithmetic itself, so its level is native: whether the finer sites run
native, upcast or reference kernels is in their own selections. Its preference is low, so that a
fused kernel at this level goes first.
"""

from __future__ import annotations

from collections.abc import Callable

from hal.binding import Binder
from hal.opset import (
    attention,
    attention_block,
    gated_activation,
    layer_norm,
    linear,
    mlp_block,
    plain_activation,
    qk_norm_rope,
    rms_norm,
)
from hal.opset.attention import AttentionFamily
from hal.opset.block import (
    AttentionBlock,
    AttentionBlockProblem,
    AttentionWeights,
    MlpBlock,
    MlpBlockProblem,
)
from hal.opset.elementwise import ActivationProblem
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.norm import NormInput, NormKind, NormProblem
from hal.tensor import Tensor

_NORMS = {NormKind.RMS: rms_norm, NormKind.LAYER: layer_norm}


class BlockNorm:
    """The norm in front of a block, as an op of its own.

    kernel: the bound op; None where the block is never asked for a norm
    """

    def __init__(self, kind: NormKind | None, problem: NormProblem, binder: Binder) -> None:
        self.kernel: Callable[..., None] | None = None
        if kind is not None:
            self.kernel = binder.bind(_NORMS[kind], problem)

    def __call__(self, norm: NormInput, out: Tensor) -> None:
        assert self.kernel is not None, "the block's problem has no norm"
        vectors = (norm.weight,) if norm.bias is None else (norm.weight, norm.bias)
        self.kernel(norm.values, norm.residual, *vectors, norm.eps, out)


@attention_block.family("composed", preference=10, batch_invariant=True, capturable=True)
class ComposedAttentionBlock(AttentionBlock):
    """qkv, rotate, write, attend, project: five calls and two intermediate results."""

    def __init__(self, problem: AttentionBlockProblem, binder: Binder) -> None:
        inner = problem.attention
        width = inner.num_heads * inner.head_dim
        rows = NormProblem(hidden_size=problem.hidden_size, dtype=inner.dtype)
        self.norm = BlockNorm(problem.norm, rows, binder)
        self.qkv: LinearFamily = binder.bind(
            linear,
            LinearProblem(
                in_features=problem.hidden_size,
                out_features=inner.qkv_width,
                dtype=inner.dtype,
                has_bias=problem.has_qkv_bias,
                weights=problem.weights,
            ),
        )
        self.output: LinearFamily = binder.bind(
            linear,
            LinearProblem(
                in_features=width,
                out_features=problem.hidden_size,
                dtype=inner.dtype,
                has_bias=problem.has_output_bias,
                weights=problem.weights,
            ),
        )
        self.family: AttentionFamily = binder.shared(attention, inner)
        self.rope = problem.rope
        has_rope = problem.rope.rotary_dim > 0 or problem.rope.has_norm
        self.qk_norm_rope = binder.bind(qk_norm_rope, problem.rope) if has_rope else None
        self._qkv_buffer = binder.arena.buffer("qkv", inner.qkv_width, inner.dtype)
        self._heads_buffer = binder.arena.buffer("heads", width, inner.dtype)

    def __call__(
        self,
        x: Tensor,
        positions: Tensor,
        kv: Tensor,
        weights: AttentionWeights,
        out: Tensor,
        norm: NormInput | None = None,
    ) -> None:
        num_tokens = x.shape[0]
        qkv = self._qkv_buffer.rows(num_tokens)
        heads = self._heads_buffer.rows(num_tokens)
        self.project(x, norm, qkv)
        self.between(qkv, positions, kv, weights, heads)
        self.output(heads, out)

    def project(self, x: Tensor, norm: NormInput | None, qkv: Tensor) -> None:
        """What lies before `between`: x, normed first where asked for, to qkv."""
        if norm is not None:
            self.norm(norm, x)
        self.qkv(x, qkv)

    def between(
        self, qkv: Tensor, positions: Tensor, kv: Tensor, weights: AttentionWeights, heads: Tensor
    ) -> None:
        """What lies between the products: rotate qkv in place, write its K and V, attend."""
        if self.qk_norm_rope is not None:
            self.qk_norm_rope(
                qkv,
                self.rope,
                positions,
                weights.cos_sin,
                weights.q_norm,
                weights.k_norm,
                weights.norm_eps,
            )
        self.family.write_kv(qkv, kv)
        self.family.attend(qkv, kv, heads)


@mlp_block.family("composed", preference=10, batch_invariant=True, capturable=True)
class ComposedMlpBlock(MlpBlock):
    """up (with gate), activation, down: three calls and two intermediate results."""

    def __init__(self, problem: MlpBlockProblem, binder: Binder) -> None:
        width = problem.intermediate_size
        rows = NormProblem(hidden_size=problem.hidden_size, dtype=problem.dtype)
        self.norm = BlockNorm(problem.norm, rows, binder)
        up_width = 2 * width if problem.is_gated else width
        self.up: LinearFamily = binder.bind(
            linear,
            LinearProblem(
                in_features=problem.hidden_size,
                out_features=up_width,
                dtype=problem.dtype,
                has_bias=problem.has_bias,
                weights=problem.weights,
            ),
        )
        self.down: LinearFamily = binder.bind(
            linear,
            LinearProblem(
                in_features=width,
                out_features=problem.hidden_size,
                dtype=problem.dtype,
                has_bias=problem.has_bias,
                weights=problem.weights,
            ),
        )
        self._activation = problem.activation
        self._activate = binder.bind(
            gated_activation if problem.is_gated else plain_activation,
            ActivationProblem(width=width, activation=problem.activation, dtype=problem.dtype),
        )
        self._up_buffer = binder.arena.buffer("mlp_up", up_width, problem.dtype)
        self._activated_buffer = binder.arena.buffer("mlp_activated", width, problem.dtype)

    def __call__(self, x: Tensor, out: Tensor, norm: NormInput | None = None) -> None:
        num_tokens = x.shape[0]
        if norm is not None:
            self.norm(norm, x)
        up = self._up_buffer.rows(num_tokens)
        activated = self._activated_buffer.rows(num_tokens)
        self.up(x, up)
        self._activate(up, self._activation, activated)
        self.down(activated, out)
