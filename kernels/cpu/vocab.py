"""vocab on a packed matrix: the same bytes serve the look-up and the logits."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.kernels.cpu import native
from hal.kernels.cpu.linear import multiply, regimes
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.reference.tensors import as_torch
from hal.opset import vocab
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def _rejects(caps: Capabilities, problem: VocabProblem) -> str | None:
    if not problem.makes_logits:
        return "packs for products; this matrix is only looked up"
    return native.needs_plain_weights(caps, problem)


@vocab.family(
    "avx512_bf16",
    preference=100,
    regimes=regimes,
    batch_invariant=True,
    rejects=_rejects,
    unavailable=native.unavailable,
)
class PackedVocab(VocabFamily):
    """Logits leave the float32 sums unrounded."""

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        self._weight = PackedWeight(problem.vocab_size, problem.hidden_size, problem.dtype)

    @property
    def num_bytes(self) -> int:
        return self._weight.num_bytes

    def allocate(self, device: Device) -> None:
        self._weight.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._weight.load(first_row, weight)

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        ids, rows = as_torch(token_ids), as_torch(out)
        native.load().gather_packed_rows(
            self._weight.address,
            self._weight.rows,
            self._weight.columns,
            self._weight.code,
            ids.data_ptr(),
            ids.shape[0],
            rows.data_ptr(),
            rows.stride(0),
            torch.get_num_threads(),
        )

    def logits(self, x: Tensor, out: Tensor) -> None:
        multiply(x, self._weight, out)
