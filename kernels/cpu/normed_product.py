"""The first product of a block and the norm in front of it, in one call where the kernels allow."""

from __future__ import annotations

from hal.kernels.cpu.linear import PackedLinear
from hal.kernels.cpu.norm import NativeLayerNorm, NativeRmsNorm
from hal.kernels.reference.block import BlockNorm
from hal.opset.linear import LinearFamily
from hal.opset.norm import NormInput
from hal.tensor import Tensor


class NormedProduct:
    """Rows are normed right before the product reads them, and nobody waits for all of them.

    Where another norm was asked for by name, or the product takes none, both run as they are.
    """

    def __init__(self, norm: BlockNorm, product: LinearFamily) -> None:
        self._norm = norm
        self._product = product
        self._fused: PackedLinear | None = None
        is_native = isinstance(norm.kernel, NativeRmsNorm | NativeLayerNorm)
        if is_native and isinstance(product, PackedLinear) and product.takes_norm:
            self._fused = product

    def __call__(self, x: Tensor, norm: NormInput | None, out: Tensor) -> None:
        """out = the product with x, which is first written where a norm is given."""
        if norm is not None and self._fused is not None:
            self._fused.after_norm(norm, x, out)
            return
        if norm is not None:
            self._norm(norm, x)
        self._product(x, out)
