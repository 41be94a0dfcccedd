"""linear through torch's matrix library: oneDNN or MKL on a CPU, the vendor's on an accelerator."""

from __future__ import annotations

import torch

from hal.kernels.reference.linear import RowMajorLinear
from hal.kernels.reference.tensors import as_torch
from hal.kernels.torch_native.predicates import UPCAST_COST, needs_plain_product, product_level
from hal.opset import linear
from hal.select import on_accelerators
from hal.tensor import Tensor


@linear.family(
    "torch",
    preference=50,
    level=product_level,
    cost=UPCAST_COST,
    capturable=on_accelerators,
    rejects=needs_plain_product,
)
class TorchLinear(RowMajorLinear):
    """x and weight in their dtype, sums in float32 inside the library, written straight to out."""

    def __call__(self, x: Tensor, out: Tensor) -> None:
        if self.bias is None:
            torch.mm(as_torch(x), self.weight.T, out=as_torch(out))
        else:
            torch.addmm(self.bias, as_torch(x), self.weight.T, out=as_torch(out))
