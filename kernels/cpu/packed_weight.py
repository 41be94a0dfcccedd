"""A matrix stored in panels of 64 rows, the one layout that the native products read."""

from __future__ import annotations

import torch

from hal.device import Device
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.kernels.cpu import native
from hal.kernels.reference.tensors import as_torch
from hal.weights import Granularity, LogicalWeight

_LANES = 16


class PackedWeight:
    """[rows, columns] packed as [ceil(rows / 64)][columns / step][64][step], step 2 in bfloat16.

    is_gated: logical rows are a gate half, then an up half, and are stored alternating every 16,
    so that a product can finish activation(gate) * up in registers; rows is a multiple of 32.

    Source: interleaving rows for the dot-product instruction, as oneDNN and ik_llama.cpp do.
    """

    def __init__(self, rows: int, columns: int, dtype: DType, *, is_gated: bool = False) -> None:
        self.rows = rows
        self.columns = columns
        self.dtype = dtype
        self.code = native.DTYPE_CODES[dtype]
        self.is_gated = is_gated
        self.address = 0
        step = 2 if dtype is DType.BFLOAT16 else 1
        self._num_elements = -(-rows // _LANES) * _LANES * -(-columns // step) * step

    @property
    def num_bytes(self) -> int:
        return self.dtype.num_bytes(self._num_elements)

    def allocate(self, device: Device) -> None:
        self._memory = as_torch(device.empty((self._num_elements,), self.dtype))
        self.address = self._memory.data_ptr()
        native.load().advise_huge_pages(self.address, self.num_bytes)
        if self._num_elements != self.rows * self.columns:
            self._memory.zero_()  # the products read the padding

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Pack logical rows first_row.. ; raises UnsupportedError for scaled weights."""
        if weight.granularity is not Granularity.NONE or weight.scales is not None:
            raise UnsupportedError(
                f"not supported yet: weights of {weight.dtype} with scales; "
                "use a checkpoint in float32, bfloat16 or float16"
            )
        values = as_torch(weight.values)
        if values.dtype not in native.TORCH_CODES:
            values = values.float()
        if values.stride(1) != 1:
            values = values.contiguous()
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

    def stored_rows(self, first_row: int, num_rows: int) -> torch.Tensor:
        """Where logical rows first_row.. are among the packed rows: for vectors beside them."""
        row = torch.arange(first_row, first_row + num_rows)
        if not self.is_gated:
            return row
        half = self.rows // 2
        is_up = row >= half
        row = torch.where(is_up, row - half, row)
        return (row // _LANES * 2 + is_up) * _LANES + row % _LANES
