"""A matrix of codes stored in strips of 16 rows, as the native products read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from hal.binding import Buffer
from hal.device import Device
from hal.dtypes import DType
from hal.errors import WeightsError
from hal.kernels.cpu import native
from hal.kernels.cpu.packed_weight import LANES, readable, stored_rows
from hal.kernels.cpu.threads import PLACEMENT
from hal.kernels.reference.tensors import as_torch, raw_bytes
from hal.kernels.reference.weight_rows import NOT_FINITE
from hal.opset.norm import NormInput
from hal.tensor import Tensor
from hal.weights import ACTIVATION_GROUP, LogicalWeight, WeightFormat

_UNIT = 4  # columns that one lane of vpdpbusd sums
_MOST_COLUMNS = 2**31 // 127**2


class QuantizedWeight:
    """[rows, columns] as QuantizedShape of src/kernels.h lays it out.

    x goes through `scratch`, rounded to codes, or in its dtype where the weight's are decoded.
    is_gated, products: as in PackedWeight.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        format: WeightFormat,
        *,
        is_gated: bool = False,
        products: native.Products = native.load,
    ) -> None:
        self.is_decoded = format.keeps_activations
        assert self.is_decoded or columns <= _MOST_COLUMNS, (
            f"a dot of {columns} codes may not fit 32 bits"
        )
        self.rows = rows
        self.columns = columns
        self.is_gated = is_gated
        self._products = products
        self.address = 0
        self.group_size = format.group_size or 0  # 0 is int8 to the native module
        self.has_zeros = format.has_zeros
        self.codes = native.layout_code(format)
        self.scratch: Buffer | None = None
        self._multiply = native.Repeated()

    @property
    def num_bytes(self) -> int:
        code_bytes, scale_bytes = self._padded_columns * LANES, 4 * LANES
        if self.group_size:
            code_bytes //= 2
            scale_bytes = (192 if self.has_zeros else 64) * -(-self.columns // self._run_columns)
        return -(-self.rows // LANES) * (code_bytes + scale_bytes)

    def scratch_bytes(self, dtype: DType) -> int:
        """Of one token in dtype: its codes, and a scale and an offset for each group of them, or
        where codes are decoded its values in another order."""
        if self.is_decoded:
            return dtype.num_bytes(self._padded_columns)
        groups = self._padded_columns // ACTIVATION_GROUP if self.group_size else 1
        return self._padded_columns + 8 * groups

    @property
    def _run_columns(self) -> int:
        """Columns behind one run of scales."""
        return (4 if self.has_zeros else 2) * self.group_size or _UNIT

    @property
    def _padded_columns(self) -> int:
        unit = ACTIVATION_GROUP if self.group_size else _UNIT
        return -(-self.columns // unit) * unit

    def allocate(self, device: Device) -> None:
        memory = as_torch(device.empty((self.num_bytes,), DType.UINT8))
        PLACEMENT.prepare(memory.data_ptr(), self.num_bytes)
        self.place(memory)

    def place(self, memory: torch.Tensor) -> None:
        """Keep the weight in these num_bytes bytes."""
        self._memory = memory
        self.address = memory.data_ptr()
        if self.rows % LANES or self.columns % self._run_columns:
            self._memory.zero_()  # nothing reads the padding, but equal weights are equal bytes

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Round logical rows first_row.. to codes; raises WeightsError where one is not finite."""
        values = readable(weight)
        assert values.shape[1] == self.columns, f"{tuple(values.shape)}, {self.columns} columns"
        assert 0 <= first_row <= self.rows - values.shape[0], f"{first_row} + {values.shape[0]}"
        num_bad = self._products().quantize_rows(
            values.data_ptr(),
            native.TORCH_CODES[values.dtype],
            values.stride(0),
            values.shape[0],
            *self._layout,
            first_row,
            self.is_gated,
            torch.get_num_threads(),
        )
        if num_bad:
            raise WeightsError(NOT_FINITE.format(num_bad))

    def raw_bytes(self) -> memoryview:
        """The memory as bytes."""
        return raw_bytes(self._memory)

    def stored_rows(self, first_row: int, num_rows: int) -> torch.Tensor:
        """Where logical rows first_row.. are among the stored rows: for vectors beside them."""
        return stored_rows(first_row, num_rows, self.rows, is_gated=self.is_gated)

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        bias: torch.Tensor | None = None,
        activation: int = native.NO_ACTIVATION,
        norm: NormInput | None = None,
    ) -> None:
        """As PackedWeight.multiply, x in float32 or bfloat16 and bias in x's dtype."""
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
        assert self.scratch is not None, "no room for x was declared"
        return partial(
            native.product(self._products(), "quantized_linear", norm),
            source.data_ptr(),
            native.TORCH_CODES[source.dtype],
            source.stride(0),
            source.shape[0],
            *self._layout,
            as_torch(self.scratch.rows(source.shape[0])).data_ptr(),
            0 if bias is None else bias.data_ptr(),
            target.data_ptr(),
            native.TORCH_CODES[target.dtype],
            target.stride(0),
            activation,
            self.is_gated,
        )

    def look_up(self, ids: torch.Tensor, out: torch.Tensor) -> None:
        """out[i] = row ids[i]; NaN where there is no such row."""
        self._products().gather_quantized_rows(
            *self._layout,
            ids.data_ptr(),
            ids.shape[0],
            out.data_ptr(),
            native.TORCH_CODES[out.dtype],
            out.stride(0),
            torch.get_num_threads(),
        )

    @property
    def _layout(self) -> tuple[int, ...]:
        """Where the native module finds the weight, and how it is stored."""
        return self.address, self.rows, self.columns, self.group_size, self.has_zeros, self.codes
