"""vocab on a packed matrix: the same bytes serve the look-up and the logits."""

from __future__ import annotations

from types import ModuleType

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.kernels.cpu import native
from hal.kernels.cpu.linear import (
    decoded_regimes,
    quantized_regimes,
    regimes,
    stored_form,
    stored_weight,
)
from hal.kernels.reference.tensors import as_torch
from hal.opset import vocab
from hal.opset.linear import LinearProblem
from hal.opset.stored import StoredForm
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def only_looked_up(problem: VocabProblem) -> str | None:
    return None if problem.makes_logits else "packs for products; this matrix is only looked up"


def _rejects(caps: Capabilities, problem: VocabProblem) -> str | None:
    return only_looked_up(problem) or native.needs_plain_weights(caps, problem)


def _rejects_quantized(caps: Capabilities, problem: VocabProblem) -> str | None:
    return only_looked_up(problem) or native.needs_avx512_vnni(caps, problem)


def _rejects_decoded(caps: Capabilities, problem: VocabProblem) -> str | None:
    return only_looked_up(problem) or native.needs_avx512_vbmi(caps, problem)


@vocab.family(
    "avx512_decoded",
    preference=100,
    regimes=decoded_regimes,
    batch_invariant=True,
    rejects=_rejects_decoded,
    unavailable=native.decoded_unavailable,
)
@vocab.family(
    "avx512_vnni",
    preference=100,
    regimes=quantized_regimes,
    batch_invariant=True,
    rejects=_rejects_quantized,
    unavailable=native.quantized_unavailable,
)
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

    @staticmethod
    def products() -> ModuleType:
        """The functions of the instruction set that multiplies it."""
        return native.load()

    def __init__(self, problem: VocabProblem, binder: Binder) -> None:
        super().__init__(problem, binder)
        product = LinearProblem(
            in_features=problem.hidden_size,
            out_features=problem.vocab_size,
            dtype=problem.dtype,
            weights=problem.weights,
        )
        self._weight = stored_weight(product, binder, self.products)

    @property
    def num_bytes(self) -> int:
        return self._weight.num_bytes

    def allocate(self, device: Device) -> None:
        self._weight.allocate(device)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        self._weight.load(first_row, weight)

    def stored(self) -> StoredForm:
        return stored_form(self.problem, self._weight)

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        self._weight.look_up(as_torch(token_ids), as_torch(out))

    def logits(self, x: Tensor, out: Tensor) -> None:
        self._weight.multiply(x, out)
