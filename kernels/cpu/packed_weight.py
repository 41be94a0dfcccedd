"""A matrix stored in panels of 64 rows, the one layout that the native products read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from hal.device import Device
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.threads import PLACEMENT
from hal.kernels.reference.tensors import as_torch, raw_bytes
from hal.kernels.reference.weight_rows import refuse_scales
from hal.opset.norm import NormInput
from hal.tensor import Tensor
from hal.weights import LogicalWeight

LANES = 16


class PackedWeight:
    """[rows, columns] packed as [ceil(rows / 64)][columns / step][64][step], step 2 in bfloat16.

    is_gated: logical rows are a gate half, then an up half, and are stored alternating every 16,
    so that a product can finish activation(gate) * up in registers; rows is a multiple of 32.
    products: the instruction set that multiplies it.

    Source: interleaving rows for the dot-product instruction, as oneDNN and ik_llama.cpp do.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        dtype: DType,
        *,
        is_gated: bool = False,
        products: native.Products = native.load,
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.dtype = dtype
        self.code = native.DTYPE_CODES[dtype]
        self.is_gated = is_gated
        self._products = products
        self.address = 0
        step = 2 if dtype is DType.BFLOAT16 else 1
        self._multiply = native.Repeated()
        self._num_elements = -(-rows // LANES) * LANES * -(-columns // step) * step

    @property
    def num_bytes(self) -> int:
        return self.dtype.num_bytes(self._num_elements)

    def allocate(self, device: Device) -> None:
        memory = as_torch(device.empty((self.num_bytes,), DType.UINT8))
        PLACEMENT.prepare(memory.data_ptr(), self.num_bytes)
        self.place(memory)

    def place(self, memory: torch.Tensor) -> None:
        """Keep the weight in these num_bytes bytes."""
        self._memory = memory
        self.address = memory.data_ptr()
        if self._num_elements != self.rows * self.columns:
            self._memory.zero_()  # the products read the padding

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Pack logical rows first_row.. ; raises UnsupportedError for scaled weights."""
        values = readable(weight)
        assert values.shape[1] == self.columns, f"{tuple(values.shape)}, {self.columns} columns"
        assert 0 <= first_row <= self.rows - values.shape[0], f"{first_row} + {values.shape[0]}"
        native.load().pack_rows(
            values.data_ptr(),
            native.TORCH_CODES[values.dtype],
            values.stride(0),
            values.shape[0],
            self.address,
            self.rows,
            self.columns,
            self.code,
            first_row,
            self.is_gated,
            torch.get_num_threads(),
        )

    def raw_bytes(self) -> memoryview:
        """The memory as bytes."""
        return raw_bytes(self._memory)

    def stored_rows(self, first_row: int, num_rows: int) -> torch.Tensor:
        """Where logical rows first_row.. are among the packed rows: for vectors beside them."""
        return stored_rows(first_row, num_rows, self.rows, is_gated=self.is_gated)

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        bias: torch.Tensor | None = None,
        activation: int = native.NO_ACTIVATION,
        norm: NormInput | None = None,
    ) -> None:
        """out = activation(x @ self.T + bias), or activation(gate) * up of a gated weight.

        x [M, columns] in the weight's dtype; out [M, rows] (gated: [M, rows / 2]) in that dtype or
        float32; rows of both may be apart. Sums are one float32 chain per element at every M.
        """
        self._multiply(self._product, x, out, bias, activation, norm)

    def _product(
        self,
        x: Tensor,
        out: Tensor,
        bias: torch.Tensor | None,
        activation: int,
        norm: NormInput | None,
    ) -> Callable[[int], object]:
        source, target = as_torch(x), as_torch(out)
        assert source.stride(1) == 1 and target.stride(1) == 1, "columns must be contiguous"
        return partial(
            native.product(self._products(), "linear", norm),
            source.data_ptr(),
            source.stride(0),
            source.shape[0],
            self.address,
            self.rows,
            self.columns,
            self.code,
            0 if bias is None else bias.data_ptr(),
            target.data_ptr(),
            native.TORCH_CODES[target.dtype],
            target.stride(0),
            activation,
            self.is_gated,
        )

    def look_up(self, ids: torch.Tensor, out: torch.Tensor) -> None:
        """out[i] = row ids[i]; NaN where there is no such row."""
        native.load().gather_packed_rows(
            self.address,
            self.rows,
            self.columns,
            self.code,
            ids.data_ptr(),
            ids.shape[0],
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )


def readable(weight: LogicalWeight) -> torch.Tensor:
    """Its values with neighbouring columns in a dtype that the native module reads."""
    refuse_scales(weight)
    values = as_torch(weight.values)
    if values.dtype not in native.TORCH_CODES:
        values = values.float()
    return values if values.stride(1) == 1 else values.contiguous()


def stored_rows(first_row: int, num_rows: int, total: int, *, is_gated: bool) -> torch.Tensor:
    """Where logical rows first_row.. of `total` stand: gate and up alternate every 16 if gated."""
    row = torch.arange(first_row, first_row + num_rows)
    if not is_gated:
        return row
    half = total // 2
    is_up = row >= half
    row = torch.where(is_up, row - half, row)
    return (row // LANES * 2 + is_up) * LANES + row % LANES
