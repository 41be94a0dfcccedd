"""vocab on a packed matrix: the same bytes serve the look-up and the logits; and as it is stored,
where it is only looked up.
"""

from __future__ import annotations

from types import ModuleType

from hal.binding import Binder
from hal.device import Capabilities, Device
from hal.kernels.cpu import native
from hal.kernels.cpu.indexing import look_up_rows
from hal.kernels.cpu.linear import stored_form, stored_weight
from hal.kernels.cpu.products import AVX512_BF16, AVX512_DECODED, AVX512_VNNI
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.vocab import RowMajorVocab
from hal.kernels.reference.weight_rows import needs_unquantized
from hal.opset import vocab
from hal.opset.linear import LinearProblem
from hal.opset.stored import StoredForm
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.tensor import Tensor
from hal.weights import LogicalWeight


def only_looked_up(problem: VocabProblem) -> str | None:
    return None if problem.makes_logits else "packs for products; this matrix is only looked up"


@AVX512_DECODED.of(vocab, only_looked_up)
@AVX512_VNNI.of(vocab, only_looked_up)
@AVX512_BF16.of(vocab, only_looked_up)
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

    @property
    def address(self) -> int:
        """Where the native module finds the weight, once it is allocated."""
        return self._weight.address

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


def _only_looks_up(caps: Capabilities, problem: VocabProblem) -> str | None:
    if problem.makes_logits:
        return "looks rows up; this matrix makes logits"
    return native.needs_any_cpu(caps, problem) or needs_unquantized(caps, problem)


@vocab.family(
    "native",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=_only_looks_up,
    unavailable=native.module_unavailable,
)
class LookedUpVocab(RowMajorVocab):
    """Copies rows as they are stored."""

    def embed(self, token_ids: Tensor, out: Tensor) -> None:
        look_up_rows(self.weight, as_torch(token_ids), as_torch(out))

    def logits(self, x: Tensor, out: Tensor) -> None:
        raise AssertionError(f"{self.problem} makes no logits")
