"""mlp_block with the activation inside the first product, and the norm where it can be."""

from __future__ import annotations

from typing import ClassVar

from hal.binding import Binder
from hal.kernels.cpu.linear import PackedUp
from hal.kernels.cpu.normed_product import NormedProduct
from hal.kernels.cpu.products import AVX512_BF16, AVX512_DECODED, AVX512_VNNI
from hal.kernels.reference.block import BlockNorm
from hal.opset import linear, mlp_block
from hal.opset.block import MlpBlock, MlpBlockProblem
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.norm import NormInput, NormProblem
from hal.tensor import Tensor


def cannot_alternate(problem: MlpBlockProblem) -> str | None:
    size = problem.intermediate_size
    if problem.is_gated and size % 16 != 0:
        return f"alternates gate and up every 16 rows; intermediate_size is {size}"
    return None


@AVX512_DECODED.of(mlp_block, cannot_alternate)
@AVX512_VNNI.of(mlp_block, cannot_alternate)
@AVX512_BF16.of(mlp_block, cannot_alternate)
class FusedMlpBlock(MlpBlock):
    """Two products; what lies between is written once, activated, in the model's dtype."""

    up_family: ClassVar[type[PackedUp]] = PackedUp

    def __init__(self, problem: MlpBlockProblem, binder: Binder) -> None:
        width = problem.intermediate_size
        up = LinearProblem(
            in_features=problem.hidden_size,
            out_features=2 * width if problem.is_gated else width,
            dtype=problem.dtype,
            has_bias=problem.has_bias,
            weights=problem.weights,
        )
        down = LinearProblem(
            in_features=width,
            out_features=problem.hidden_size,
            dtype=problem.dtype,
            has_bias=problem.has_bias,
            weights=problem.weights,
        )
        self.up: LinearFamily = self.up_family(up, binder, problem.activation, problem.is_gated)
        self.down: LinearFamily = binder.bind(linear, down)
        rows = NormProblem(hidden_size=problem.hidden_size, dtype=problem.dtype)
        self._up = NormedProduct(BlockNorm(problem.norm, rows, binder), self.up)
        self._activated_buffer = binder.arena.buffer("mlp_activated", width, problem.dtype)

    def __call__(self, x: Tensor, out: Tensor, norm: NormInput | None = None) -> None:
        activated = self._activated_buffer.rows(x.shape[0])
        self._up(x, norm, activated)
        self.down(activated, out)
