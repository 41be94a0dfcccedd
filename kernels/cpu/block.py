"""mlp_block with the activation inside the first product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.cpu import native
from hal.kernels.cpu.linear import PackedLinear, PackedUp, quantized_regimes, regimes
from hal.opset import linear, mlp_block
from hal.opset.block import MlpBlock, MlpBlockProblem
from hal.opset.linear import LinearFamily, LinearProblem
from hal.tensor import Tensor


def _cannot_alternate(problem: MlpBlockProblem) -> str | None:
    size = problem.intermediate_size
    if problem.is_gated and size % 16 != 0:
        return f"alternates gate and up every 16 rows; intermediate_size is {size}"
    return None


def _rejects(caps: Capabilities, problem: MlpBlockProblem) -> str | None:
    return _cannot_alternate(problem) or native.needs_plain_weights(caps, problem)


def _rejects_quantized(caps: Capabilities, problem: MlpBlockProblem) -> str | None:
    return _cannot_alternate(problem) or native.needs_avx512_vnni(caps, problem)


@mlp_block.family(
    "avx512_vnni",
    preference=100,
    regimes=quantized_regimes,
    batch_invariant=True,
    rejects=_rejects_quantized,
    unavailable=native.quantized_unavailable,
)
@mlp_block.family(
    "avx512_bf16",
    preference=100,
    regimes=regimes,
    batch_invariant=True,
    rejects=_rejects,
    unavailable=native.unavailable,
)
class FusedMlpBlock(MlpBlock):
    """Two products in one parallel region; what lies between is written once, activated."""

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
        self.up: PackedUp = PackedUp(up, binder, problem.activation, problem.is_gated)
        self.down: LinearFamily = binder.bind(linear, down)
        self._activated_buffer = binder.arena.buffer("mlp_activated", width, problem.dtype)
        self._is_quantized = problem.weights is not None
        self._both = native.Repeated(self._prepare)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        activated = self._activated_buffer.rows(x.shape[0])
        if isinstance(self.down, PackedLinear):
            self._both(x, activated, out)
            return
        self.up(x, activated)  # --kernel chose another family for the second product
        self.down(activated, out)

    def _prepare(self, x: Tensor, activated: Tensor, out: Tensor) -> Callable[[int], object]:
        assert isinstance(self.down, PackedLinear)
        module = native.load()
        run = module.quantized_mlp if self._is_quantized else module.mlp
        return partial(run, self.up.product(x, activated), self.down.product(activated, out))
