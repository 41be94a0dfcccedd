"""A weight of int4 codes, two in a byte, as the kernels of src/linear.py read it."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from hal.device import Device
from hal.dtypes import DType
from hal.kernels.reference.quantized_rows import QuantizedRows, nibbles, quantized_parts
from hal.kernels.reference.tensors import as_torch
from hal.weights import LogicalWeight, WeightFormat

_CHUNK = 64  # columns that share 32 bytes


class PackedInt4:
    """codes [rows, padded_columns / 2] uint8, scales [rows, num_groups] bfloat16, and zeros of the
    same shape in uint8 where the format has them.

    A byte holds a column in its low half and the one 32 further in its high half, so that unpacking
    gives 32 neighbours without moving any. Padding has scales of 0.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    def __init__(self, rows: int, columns: int, format: WeightFormat) -> None:
        assert format.group_size is not None, f"{format} has no groups"
        self.padded_columns = -(-columns // _CHUNK) * _CHUNK
        self.group_size = format.group_size
        self.num_groups = -(-self.padded_columns // self.group_size)
        self._rows = rows
        self._format = format

    @property
    def num_bytes(self) -> int:
        of_a_group = 3 if self._format.has_zeros else 2
        return self._rows * (self.padded_columns // 2 + of_a_group * self.num_groups)

    def allocate(self, device: Device) -> None:
        shape = (self._rows, self.num_groups)
        self.codes = as_torch(device.empty((self._rows, self.padded_columns // 2), DType.UINT8))
        self.scales = as_torch(device.empty(shape, DType.BFLOAT16))
        if self._format.has_zeros:
            self.zeros = as_torch(device.empty(shape, DType.UINT8))

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Quantise rows first_row.. as the reference does."""
        for first, part in quantized_parts(weight, self._format):
            rows = slice(first_row + first, first_row + first + len(part.codes))
            self._store(rows, part)

    def _store(self, rows: slice, part: QuantizedRows) -> None:
        size = self.num_groups * self.group_size
        found = nibbles(part, size, has_zeros=self._format.has_zeros)
        halves = found.codes[:, : self.padded_columns]
        low, high = halves.view(len(halves), -1, 2, _CHUNK // 2).unbind(dim=2)
        self.codes[rows] = (low | (high << 4)).view(len(halves), -1)
        self.scales[rows] = pad(part.scales, (0, self.num_groups - part.scales.shape[1])).to(
            torch.bfloat16
        )
        if self.zeros is not None:
            assert found.zeros is not None
            self.zeros[rows] = found.zeros
