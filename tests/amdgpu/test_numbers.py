"""Every 8-bit code, every 16-bit code, and roundings at and beside every boundary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from amdgpu.numbers import (
    E4M3,
    E4M3_FNUZ,
    E5M2,
    E5M2_FNUZ,
    Float8,
    bf16_of_f32,
    f16_of_f32,
    f32_of_bf16,
    f32_of_f16,
)
from numpy.typing import NDArray

FORMATS = {
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
    E4M3_FNUZ: torch.float8_e4m3fnuz,
    E5M2_FNUZ: torch.float8_e5m2fnuz,
}
CODES = np.arange(256, dtype=np.uint8)
HALVES = np.arange(1 << 16, dtype=np.uint16)
formats = pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)


def same(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal bits, except that any NaN is any other."""
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(actual), nan)
    assert np.array_equal(actual[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def boundaries(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every number, every middle of two, the float32 on either side of each, and what is beyond."""
    finite = np.unique(table[np.isfinite(table)])
    middles = (finite[1:].astype(np.float64) + finite[:-1]) / 2
    past = finite[-1] + (finite[-1] - finite[-2]) * np.array([0.25, 0.5, 0.75, 1, 100])
    exact = np.concatenate([finite, middles, past, -past, [0.0, -0.0]]).astype(np.float32)
    up, down = (np.nextafter(exact, np.float32(to)) for to in (np.inf, -np.inf))
    return np.concatenate([exact, up, down, np.array([np.inf, -np.inf, np.nan], np.float32)])


@formats
def test_every_code_means_what_torch_says(format: Float8) -> None:
    same(format.widen(CODES), torch.from_numpy(CODES).view(FORMATS[format]).float().numpy())


@formats
def test_rounding_is_as_torch_rounds(format: Float8) -> None:
    """Of what is in range: beyond, releases of torch differ."""
    values = boundaries(format.table)
    values = values[np.abs(values) <= format.table[format.max_code]]
    expected = torch.from_numpy(values).to(FORMATS[format]).view(torch.uint8).numpy()
    actual = format.round(values, saturates=False)
    same(format.widen(actual), format.widen(expected))


@formats
def test_rounding_finds_the_nearest_even_code(format: Float8) -> None:
    """By looking through the table, for values of every size and sign."""
    largest = format.table[format.max_code]
    rng = np.random.default_rng(7)
    sizes = np.exp2(rng.uniform(-24, np.log2(float(largest)), 500)).astype(np.float32)
    values = np.concatenate([sizes, -sizes, boundaries(format.table)])
    values = values[np.abs(values) <= largest]
    numbers = np.unique(format.table[np.isfinite(format.table)]).astype(np.float64)
    # Exact in float64 for the numbers that are near, and no other is the nearest.
    distances = np.abs(values[:, None].astype(np.float64) - numbers)
    least = distances.min(axis=1)
    codes = format.round(values, saturates=False)
    found = np.abs(values.astype(np.float64) - format.widen(codes))
    assert np.array_equal(found, least)
    is_tie = np.count_nonzero(distances == least[:, None], axis=1) == 2
    assert is_tie.sum() > 200 and not (codes[is_tie] & 1).any()


@formats
def test_what_is_too_large_is_infinite_or_nan(format: Float8) -> None:
    """From the middle between the largest number and the one that would follow it."""
    largest = format.table[format.max_code]
    edge = largest + (largest - format.table[format.max_code - 1]) / np.float32(2)
    below = np.nextafter(edge, np.float32(0))
    beyond = np.inf if format.has_infinity else np.nan
    # A tie goes to the even code.
    at_edge = largest if format.max_code % 2 == 0 else beyond
    values = np.array([below, -below, edge, 1e9, -1e9, np.inf, -np.inf], np.float32)
    wanted = [largest, -largest, at_edge, beyond, -beyond, beyond, -beyond]
    same(format.widen(format.round(values, saturates=False)), np.array(wanted, np.float32))


@formats
def test_what_is_too_large_saturates_on_request(format: Float8) -> None:
    values = np.array([1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    largest = format.table[format.max_code]
    actual = format.widen(format.round(values, saturates=True))
    same(actual, np.array([largest, -largest, largest, -largest, np.nan], np.float32))


@formats
def test_no_code_of_a_number_is_lost(format: Float8) -> None:
    back = format.round(format.widen(CODES), saturates=False)
    nan = np.isnan(format.table)
    assert np.array_equal(back[~nan], CODES[~nan])


def test_negative_numbers_too_small_are_no_nan_of_fnuz() -> None:
    assert E4M3_FNUZ.round(np.array([-1e-9, -0.0], np.float32), saturates=True).tolist() == [0, 0]


def test_every_bfloat16_widens() -> None:
    same(f32_of_bf16(HALVES), torch.from_numpy(HALVES).view(torch.bfloat16).float().numpy())


def test_every_float16_widens() -> None:
    same(f32_of_f16(HALVES), torch.from_numpy(HALVES).view(torch.float16).float().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_to_nearest_even(dtype: torch.dtype) -> None:
    is_bf16 = dtype is torch.bfloat16
    widen, narrow = (f32_of_bf16, bf16_of_f32) if is_bf16 else (f32_of_f16, f16_of_f32)
    with np.errstate(over="ignore"):
        values = boundaries(widen(HALVES))
    expected = torch.from_numpy(values).to(dtype).view(torch.uint16).numpy()
    same(widen(narrow(values)), widen(expected))
