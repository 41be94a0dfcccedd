"""vocab through torch's matrix library."""

from __future__ import annotations

import torch

from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.vocab import RowMajorVocab, is_lookup
from hal.kernels.torch_native.predicates import UPCAST_COST, needs_plain_product, product_level
from hal.opset import vocab
from hal.select import on_accelerators
from hal.tensor import Tensor


@vocab.family(
    "torch",
    preference=50,
    level=product_level,
    cost=UPCAST_COST,
    batch_invariant=is_lookup,
    capturable=on_accelerators,
    rejects=needs_plain_product,
)
class TorchVocab(RowMajorVocab):
    """Logits are rounded to the weight's dtype before they become float32, as in transformers."""

    def logits(self, x: Tensor, out: Tensor) -> None:
        if self.weight.dtype is torch.float32:
            torch.mm(as_torch(x), self.weight.T, out=as_torch(out))
        else:
            as_torch(out).copy_(torch.mm(as_torch(x), self.weight.T))
