"""What AMX kernels are tested on: exact, in the order of a CPU, with its faults."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

BYTES = {0: (np.int8, np.int8), 1: (np.int8, np.uint8), 2: (np.uint8, np.int8)}
BYTES |= {3: (np.uint8, np.uint8)}
TILES = [(16, 16, 16), (1, 1, 1), (5, 8, 3), (16, 3, 16)]  # rows, units, columns
Tile = NDArray[np.uint8]


def as_tile(values: NDArray[np.generic]) -> Tile:
    """Rows of up to 64 bytes at the start of 16 x 64 that are otherwise full of ones."""
    tile = np.full((16, 64), 0xFF, np.uint8)
    rows = np.ascontiguousarray(values).view(np.uint8)
    tile[: rows.shape[0], : rows.shape[1]] = rows
    return tile


def tile_product(
    library: ctypes.CDLL, kind: int, size: tuple[int, int, int], a: Tile, b: Tile, sums: Tile
) -> Tile:
    out = sums.copy()
    pointers = [ctypes.c_void_p(tile.ctypes.data) for tile in (a, b, out)]
    library.tile_product(kind, *size, *pointers)
    return out


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("size", TILES, ids=str)
def test_emulated_bytes(library: ctypes.CDLL, size: tuple[int, int, int], kind: int) -> None:
    """Exact, extremes included; nothing outside the tile is read or written."""
    rows, units, columns = size
    rng = np.random.default_rng(kind)
    left, right = (np.iinfo(dtype) for dtype in BYTES[kind])
    a = rng.integers(left.min, left.max, (rows, 4 * units), left.dtype, endpoint=True)
    b = rng.integers(right.min, right.max, (units, 4 * columns), right.dtype, endpoint=True)
    a[0], b[0] = left.max, right.max
    sums = rng.integers(-(2**30), 2**30, (rows, columns), np.int32)
    depth = b.reshape(units, columns, 4).transpose(0, 2, 1).reshape(4 * units, columns)
    expected = sums + a.astype(np.int32) @ depth.astype(np.int32)
    out = tile_product(library, kind, size, as_tile(a), as_tile(b), as_tile(sums))
    assert np.array_equal(out, as_tile(expected.astype(np.int32)))


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Values that bfloat16 holds exactly."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def bf16_sum(library: ctypes.CDLL, x: list[float], weight: list[float], start: float) -> float:
    """One row by one column, through the tiles."""
    a, b = (bfloat16(np.array(v, np.float32))[None] for v in (x, weight))
    size = (1, len(x) // 2, 1)
    sums = as_tile(np.array([[start]], np.float32))
    out = tile_product(library, 4, size, as_tile(a), as_tile(b.reshape(-1, 2)), sums)
    return float(out[0, :4].view(np.float32)[0])


TINY = 2.0**-126  # the least normal number
BIG = 2.0**24  # one more is lost


def test_emulated_bf16_order(library: ctypes.CDLL) -> None:
    """Even and odd columns add up apart, then meet, then meet the sum."""
    ones = [1.0] * 4
    assert bf16_sum(library, [BIG, 1.0, -BIG, 1.0], ones, 0.0) == 2.0
    assert bf16_sum(library, [BIG, -BIG, 1.0, 1.0], ones, 0.0) == 1.0
    assert bf16_sum(library, [1.0, 1.0, 0.0, 0.0], ones, BIG) == BIG + 2
    assert bf16_sum(library, [BIG, 0.0, 1.0, 1.0], ones, -BIG) == 0.0


def test_emulated_bf16_flushes_denormals(library: ctypes.CDLL) -> None:
    assert bf16_sum(library, [TINY / 2, 0.0], [BIG, 0.0], 0.0) == 0.0
    assert bf16_sum(library, [TINY, 0.0], [0.5, 0.0], 0.0) == 0.0
    assert bf16_sum(library, [0.0, 0.0], [0.0, 0.0], TINY / 2) == 0.0
    assert bf16_sum(library, [TINY, 0.0], [1.0, 0.0], 0.0) == TINY
    assert np.isnan(bf16_sum(library, [np.inf, 1.0], [0.0, 1.0], 0.0))


@pytest.mark.parametrize("size", TILES, ids=str)
def test_emulated_bf16(library: ctypes.CDLL, size: tuple[int, int, int]) -> None:
    rows, units, columns = size
    rng = np.random.default_rng(5)
    a = rng.integers(-9, 9, (rows, 2 * units)).astype(np.float32)
    b = rng.integers(-9, 9, (units, 2 * columns)).astype(np.float32)
    sums = rng.integers(-99, 99, (rows, columns)).astype(np.float32)
    depth = b.reshape(units, columns, 2).transpose(0, 2, 1).reshape(2 * units, columns)
    tiles = (as_tile(bfloat16(a)), as_tile(bfloat16(b)), as_tile(sums))
    out = tile_product(library, 4, size, *tiles)
    assert np.array_equal(out, as_tile((sums + a @ depth).astype(np.float32)))


MISUSES = [
    "not configured",
    "palette is 0 or 1",
    "16 rows of 64 bytes at most",
    "16 rows of 64 bytes at most",
    "rows and bytes, or neither",
    "eight tiles",
    "no rows",
    "three different tiles",
    "rows as long",
    "as many rows",
    "as many rows",
    "depths of the sources are equal",
    "not configured",
]


@pytest.mark.parametrize("kind", range(len(MISUSES)))
def test_emulated_faults(library: ctypes.CDLL, kind: int) -> None:
    code = f"import ctypes; ctypes.CDLL({library._name!r}).misuse({kind})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode != 0
    assert MISUSES[kind] in run.stderr
