"""Activations and sums in one pass: float32 inside, one rounding."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.kernels.triton.predicates import PREFERENCE, needs_float, unavailable
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.opset import add, gated_activation, plain_activation
from hal.opset.elementwise import Activation, ActivationProblem, ElementwiseProblem

_GATED = Program("elementwise", "gated_activation")
_PLAIN = Program("elementwise", "plain_activation")
_ADD = Program("elementwise", "add")


class RowPieces:
    """How rows of `width` are cut: BLOCK elements for each program of grid(num_rows)."""

    def __init__(self, width: int, binder: Binder) -> None:
        options = launch_options(binder.selector.caps, "elementwise")
        block = min(options["BLOCK"], next_power_of_2(width))
        self._num_pieces = -(-width // block)
        self.options = {**options, "WIDTH": width, "BLOCK": block}

    def grid(self, num_rows: int) -> tuple[int, int]:
        return (num_rows, self._num_pieces)


@gated_activation.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_float,
    unavailable=unavailable,
)
class TritonGatedActivation:
    """Both halves of a row contiguous."""

    def __init__(self, problem: ActivationProblem, binder: Binder) -> None:
        self._pieces = RowPieces(problem.width, binder)

    def __call__(self, gate_up: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
        grid = self._pieces.grid(len(out))
        _GATED.launch(grid, gate_up, out, ACTIVATION=str(activation), **self._pieces.options)


@plain_activation.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_float,
    unavailable=unavailable,
)
class TritonPlainActivation:
    """Each element is read and written by one thread, so `out` may be `x`."""

    def __init__(self, problem: ActivationProblem, binder: Binder) -> None:
        self._pieces = RowPieces(problem.width, binder)

    def __call__(self, x: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
        grid = self._pieces.grid(len(out))
        _PLAIN.launch(grid, x, out, ACTIVATION=str(activation), **self._pieces.options)


@add.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_float,
    unavailable=unavailable,
)
class TritonAdd:
    """Each element is read and written by one thread, so `out` may be `x`."""

    def __init__(self, problem: ElementwiseProblem, binder: Binder) -> None:
        self._pieces = RowPieces(problem.width, binder)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        _ADD.launch(self._pieces.grid(len(out)), x, y, out, **self._pieces.options)
