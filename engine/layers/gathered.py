"""A layer whose inputs ranks have parts of, without partial sums: for the bits of one rank."""

from __future__ import annotations

from dataclasses import replace

from hal import opset
from hal.binding import Binder
from hal.collective import Collective
from hal.device import Device
from hal.opset.linear import LinearFamily, LinearProblem
from hal.share import Share
from hal.tensor import Tensor
from hal.weights import LogicalWeight


class GatheredLinear(LinearFamily):
    """Gathers the inputs of all ranks, makes this rank's outputs of them, and gathers those.

    Each output is one sum over all inputs, in the order that one rank takes; a sum of the ranks'
    sums would be another. It moves more between ranks. Rows are those of this rank's outputs.

    problem: of the layer as the block around it sees it, with this rank's inputs
    in_features: of all ranks
    """

    def __init__(
        self, problem: LinearProblem, in_features: int, binder: Binder, collective: Collective
    ) -> None:
        super().__init__(problem, binder)
        share = Share(collective.rank, collective.size)
        own = len(share.of(problem.out_features))
        whole = replace(problem, in_features=in_features, out_features=own)
        self.own: LinearFamily = binder.bind(opset.linear, whole)
        self._collective = collective
        self._inputs = binder.arena.buffer("gathered_inputs", in_features, problem.dtype)
        self._outputs = binder.arena.buffer("own_outputs", own, problem.dtype)

    @property
    def num_bytes(self) -> int:
        return self.own.num_bytes

    def allocate(self, device: Device) -> None:
        self.own.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self.own.load(first_row, weight)

    def load_bias(self, first_row: int, values: Tensor) -> None:
        self.own.load_bias(first_row, values)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        inputs, outputs = self._inputs.rows(x.shape[0]), self._outputs.rows(x.shape[0])
        self._collective.all_gather(x, inputs)
        self.own(inputs, outputs)
        self._collective.all_gather(outputs, out)
