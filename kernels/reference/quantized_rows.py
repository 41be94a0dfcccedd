"""Rows as codes under scales, as hal.weights.WeightFormat defines them, and their product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hal.device import Device
from hal.dtypes import DType
from hal.errors import WeightsError
from hal.kernels.reference.tensors import as_torch
from hal.kernels.reference.weight_rows import NOT_FINITE, refuse_scales
from hal.weights import SMALLEST, LogicalWeight, WeightFormat

# Codes and their products are whole numbers: sums of so many are exact in float32.
_EXACT_COLUMNS = 1024
_ROWS_AT_ONCE = 1024
_LARGEST_FP8 = 448.0


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """codes [rows, columns] int8 or e4m3, zero points taken off already; scales [rows, groups]
    float32, one per group_size columns."""

    codes: torch.Tensor
    scales: torch.Tensor
    group_size: int


def quantize_activations(x: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """x [tokens, columns] to int8, a scale for each token or for each group of its columns."""
    groups = _grouped(x.float(), format.activation_group)
    largest = groups.abs().amax(dim=-1)
    is_zero, is_finite = largest <= SMALLEST, largest.isfinite()
    # Tensors on both sides: torch divides by or into a number as a product with an inverse.
    top = torch.full_like(largest, 127.0)
    inverse = torch.where(is_zero | ~is_finite, 0.0, top / largest)
    scales = torch.where(is_zero, 0.0, largest / top).masked_fill(~is_finite, torch.nan)
    codes = torch.round(groups * inverse[..., None]).nan_to_num(0.0).flatten(1)[:, : x.shape[1]]
    return QuantizedRows(codes.to(torch.int8), scales, groups.shape[-1])


def quantize_weight(values: torch.Tensor, format: WeightFormat) -> QuantizedRows:
    """Raises WeightsError for values that are not finite: a code would hide them."""
    rows = values.float()
    is_bad = ~rows.isfinite().all(dim=1)
    if is_bad.any():
        raise WeightsError(NOT_FINITE.format(int(is_bad.sum())))
    if format.codes is DType.INT8:
        return quantize_activations(rows, format)
    if format.codes is DType.FLOAT8_E4M3FN:
        return _to_fp8(rows)
    groups = _grouped(rows, format.group_size)
    codes, scales = _with_zeros(groups) if format.has_zeros else _symmetric(groups)
    return QuantizedRows(
        codes.flatten(1)[:, : rows.shape[1]].to(torch.int8), scales, groups.shape[-1]
    )


def quantized_parts(
    weight: LogicalWeight, format: WeightFormat
) -> Iterator[tuple[int, QuantizedRows]]:
    """A weight in pieces of a bounded size, each with its first row; raises UnsupportedError for
    one that has scales."""
    refuse_scales(weight)
    first = 0
    for values in as_torch(weight.values).split(_ROWS_AT_ONCE):
        yield first, quantize_weight(values, format)
        first += len(values)


@dataclass(frozen=True, slots=True)
class Nibbles:
    """codes [rows, columns] uint8, 0 to 15; zeros [rows, groups] uint8, what to take off of them,
    None: 8."""

    codes: torch.Tensor
    zeros: torch.Tensor | None


def nibbles(part: QuantizedRows, columns: int, *, has_zeros: bool) -> Nibbles:
    """int4 codes as unsigned, padded to `columns`, which holds whole groups."""
    padded = torch.nn.functional.pad(part.codes, (0, columns - part.codes.shape[1]))
    groups = padded.view(len(padded), -1, part.group_size)
    if not has_zeros:
        return Nibbles((groups + 8).to(torch.uint8).flatten(1), None)
    # Any zero will do under which a group's codes are 0 to 15.
    zeros = (-groups.amin(dim=-1)).clamp(min=0)
    raised = (groups + zeros[..., None]).to(torch.uint8)
    return Nibbles(raised.flatten(1), zeros.to(torch.uint8))


def _to_fp8(rows: torch.Tensor) -> QuantizedRows:
    largest = rows.abs().amax(dim=1, keepdim=True)
    is_zero = largest <= SMALLEST
    top = torch.full_like(largest, _LARGEST_FP8)
    inverse = torch.where(is_zero, 0.0, top / largest)
    codes = (rows * inverse).clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn)
    return QuantizedRows(codes, torch.where(is_zero, 0.0, largest / top), rows.shape[1])


def _symmetric(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes -8 .. 7 of [rows, groups, group_size] and their scales."""
    high, low = groups.amax(dim=-1), groups.amin(dim=-1)
    extreme = torch.where(high >= -low, high, low)
    scales, inverse = _bfloat16_scales(extreme / -8.0, is_zero=extreme.abs() <= SMALLEST)
    return torch.round(groups * inverse[..., None]).clamp(-8, 7), scales


def _with_zeros(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from -15 to 15, each group's 16 codes around its zero point."""
    high, low = groups.amax(dim=-1).clamp(min=0.0), groups.amin(dim=-1).clamp(max=0.0)
    steps = torch.full_like(high, 15.0)
    scales, inverse = _bfloat16_scales(high / steps - low / steps, is_zero=high - low <= SMALLEST)
    zeros = torch.round(-low * inverse).clamp(0, 15)[..., None]
    return (torch.round(groups * inverse[..., None]) + zeros).clamp(0, 15) - zeros, scales


def _bfloat16_scales(
    exact: torch.Tensor, *, is_zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and their inverses, both 0 where all is zero."""
    scales = torch.where(is_zero, 0.0, exact.bfloat16().float())
    return scales, torch.where(is_zero, 0.0, 1.0 / scales)


def _grouped(x: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """[rows, groups, group_size], zeros behind the last column."""
    size = group_size or x.shape[1]
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)).view(len(x), -1, size)


class QuantizedMatrix:
    """A weight [rows, columns] held as QuantizedRows, one byte for each code."""

    def __init__(self, rows: int, columns: int, format: WeightFormat) -> None:
        self._format = format
        self._shape = (rows, columns)
        self._group_size = format.group_size or columns
        self._scales_shape = (rows, -(-columns // self._group_size))

    @property
    def num_bytes(self) -> int:
        rows, columns = self._shape
        return rows * (columns + 4 * self._scales_shape[1])

    def allocate(self, device: Device) -> None:
        stored = DType.INT8 if self._format.codes is DType.INT4 else self._format.codes
        codes = as_torch(device.empty(self._shape, stored))
        scales = as_torch(device.empty(self._scales_shape, DType.FLOAT32))
        self.stored = QuantizedRows(codes, scales, self._group_size)

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Quantise rows first_row.. ; raises UnsupportedError for weights that have scales."""
        for start, part in quantized_parts(weight, self._format):
            first = first_row + start
            self.stored.codes[first : first + len(part.codes)] = part.codes
            self.stored.scales[first : first + len(part.codes)] = part.scales

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """[ids, columns] in float32."""
        codes = self.stored.codes.index_select(0, ids).float()
        scales = self.stored.scales.index_select(0, ids)
        return codes * scales.repeat_interleave(self._group_size, dim=1)[:, : codes.shape[1]]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x @ self.T in float32, each group's products scaled and summed in float64.

        Of two codes they are exact, so no order of summation shows and every M gives the same bits.
        """
        if self._format.keeps_activations:
            return self._multiply_floats(x)
        a, b = quantize_activations(x, self._format), self.stored
        step = min(_EXACT_COLUMNS, a.group_size, b.group_size)
        total = torch.zeros(len(x), self._shape[0], dtype=torch.float64, device=x.device)
        for first in range(0, self._shape[1], step):
            columns = slice(first, first + step)
            dots = a.codes[:, columns].float() @ b.codes[:, columns].float().T
            left = a.scales[:, first // a.group_size, None]
            total += dots.double() * (left * b.scales[:, first // b.group_size])
        return total.float()

    def _multiply_floats(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(x), self._shape[0], dtype=torch.float64, device=x.device)
        for group in range(self._scales_shape[1]):
            columns = slice(group * self._group_size, (group + 1) * self._group_size)
            dots = x[:, columns].double() @ self.stored.codes[:, columns].double().T
            total += dots * self.stored.scales[:, group].double()
        return total.float()
