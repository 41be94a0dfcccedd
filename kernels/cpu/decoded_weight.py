"""A matrix of codes in panels of 64 rows, decoded to floats by the products that read it."""

from __future__ import annotations

import torch

from hal.device import Device
from hal.dtypes import DType
from hal.errors import WeightsError
from hal.kernels.cpu import native
from hal.kernels.cpu.packed_weight import LANES, readable, stored_rows
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import NOT_FINITE
from hal.tensor import Tensor
from hal.weights import LogicalWeight, WeightFormat


class DecodedWeight:
    """[rows, columns] as DecodedShape of src/kernels.h lays it out; x keeps its dtype.

    is_gated: as in PackedWeight.
    """

    def __init__(
        self, rows: int, columns: int, format: WeightFormat, *, is_gated: bool = False
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.is_gated = is_gated
        self.address = 0
        self.group_size = format.group_size or 0
        layout = "fp8" if format.codes is DType.FLOAT8_E4M3FN else str(format.codes)
        self.layout = native.LAYOUT_CODES[layout + "-asym" * format.has_zeros]
        self._header_bytes = 3 * LANES if format.has_zeros else 2 * LANES
        self._codes_in_unit = 128 // LANES  # of one row in 64 bytes
        if not self.group_size:
            self._header_bytes, self._codes_in_unit = 4 * LANES, 64 // LANES

    @property
    def num_bytes(self) -> int:
        groups = -(-self.columns // (self.group_size or self.columns))
        units = -(-self.columns // self._codes_in_unit)
        return -(-self.rows // LANES) * (groups * self._header_bytes + 64 * units)

    def allocate(self, device: Device) -> None:
        self._memory = as_torch(device.empty((self.num_bytes,), DType.UINT8))
        self.address = self._memory.data_ptr()
        native.load().advise_huge_pages(self.address, self.num_bytes)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Round logical rows first_row.. to codes; raises WeightsError where one is not finite."""
        values = readable(weight)
        assert values.shape[1] == self.columns, f"{tuple(values.shape)}, {self.columns} columns"
        assert 0 <= first_row <= self.rows - values.shape[0], f"{first_row} + {values.shape[0]}"
        num_bad = native.load().encode_rows(
            values.data_ptr(),
            native.TORCH_CODES[values.dtype],
            values.stride(0),
            values.shape[0],
            *self._shape,
            first_row,
            self.is_gated,
            torch.get_num_threads(),
        )
        if num_bad:
            raise WeightsError(NOT_FINITE.format(num_bad))

    def stored_rows(self, first_row: int, num_rows: int) -> torch.Tensor:
        """Where logical rows first_row.. are among the stored rows: for vectors beside them."""
        return stored_rows(first_row, num_rows, self.rows, is_gated=self.is_gated)

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        bias: torch.Tensor | None = None,
        activation: int = native.NO_ACTIVATION,
    ) -> None:
        """As PackedWeight.multiply, x in float32 or bfloat16 and bias in x's dtype."""
        source, target = as_torch(x), as_torch(out)
        assert source.stride(1) == 1 and target.stride(1) == 1, "columns must be contiguous"
        native.load().decoded_linear(
            source.data_ptr(),
            native.TORCH_CODES[source.dtype],
            source.stride(0),
            source.shape[0],
            *self._shape,
            0 if bias is None else bias.data_ptr(),
            target.data_ptr(),
            native.TORCH_CODES[target.dtype],
            target.stride(0),
            activation,
            self.is_gated,
            torch.get_num_threads(),
        )

    def look_up(self, ids: torch.Tensor, out: torch.Tensor) -> None:
        """out[i] = row ids[i]; NaN where there is no such row."""
        native.load().gather_decoded_rows(
            *self._shape,
            ids.data_ptr(),
            ids.shape[0],
            out.data_ptr(),
            native.TORCH_CODES[out.dtype],
            out.stride(0),
            torch.get_num_threads(),
        )

    @property
    def _shape(self) -> tuple[int, ...]:
        """Where the native module finds this weight, and how it is laid out."""
        return self.address, self.rows, self.columns, self.group_size, self.layout
