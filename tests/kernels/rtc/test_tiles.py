"""Packing: every code stands once where the lane of a matrix instruction looks for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hal.devices.cpu import CpuDevice
from hal.dtypes import DType
from hal.kernels.reference.quantized_rows import quantize_weight
from hal.kernels.rtc.arch import ORDERS, TileOrder
from hal.kernels.rtc.tiles import CHUNK, TILE_ROWS, Int4Tiles, row_positions, word_positions
from hal.profiles import find_profile
from hal.weights import WEIGHT_FORMATS, LogicalWeight, WeightFormat

ALL_ORDERS = [pytest.param(order, id=order.header) for order in dict.fromkeys(ORDERS.values())]
FORMATS = [
    pytest.param(format, id=name)
    for name, format in WEIGHT_FORMATS.items()
    if format.codes is DType.INT4 and format.keeps_activations
]
ROWS, COLUMNS = 37, 200  # no whole tiles, chunks or groups


@pytest.mark.parametrize("order", ALL_ORDERS)
def test_words_and_rows_are_permuted(order: TileOrder) -> None:
    assert sorted(word_positions(order).ravel()) == list(range(256))
    assert sorted(row_positions(order)) == list(range(TILE_ROWS))


@pytest.mark.parametrize("order", ALL_ORDERS)
def test_a_lane_loads_words_of_its_own(order: TileOrder) -> None:
    """As src/int4_linear.cpp does: 16 bytes a load, slab after slab."""
    positions = word_positions(order)
    for lane in range(order.code_lanes):
        mine = []
        for slab in range(4):
            for i in range(order.lane_rows):
                for j in range(order.lane_pieces):
                    mine.append(positions[order.row(lane, i), slab, order.piece(lane, j)])
        loads = np.array(mine).reshape(-1, 4)
        starts = [(n * order.code_lanes + lane) * 4 for n in range(len(loads))]
        assert np.array_equal(loads, np.array(starts)[:, None] + np.arange(4))


def packed(order: TileOrder, format: WeightFormat, slices: list[slice]) -> Int4Tiles:
    tiles = Int4Tiles(ROWS, COLUMNS, format, order)
    tiles.allocate(CpuDevice(find_profile("h100").capabilities()))
    for rows in slices:
        tiles.load(rows.start, LogicalWeight(values=weight()[rows], dtype=DType.FLOAT32))
    return tiles


def weight() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))


def unpacked(tiles: Int4Tiles, order: TileOrder) -> NDArray[np.int64]:
    """[rows, columns] of codes 0 to 15, read nibble by nibble."""
    words = tiles.codes.numpy().view("<u4")[..., 0]
    found = np.zeros((len(words) * TILE_ROWS, words.shape[1] * CHUNK), np.int64)
    for (row, slab, piece), position in np.ndenumerate(word_positions(order)):
        for column in range(8):
            nibble = column // 2 + column % 2 * 4
            codes = words[:, :, position] >> (4 * nibble) & 15
            found[row::TILE_ROWS, slab * 32 + piece * 8 + column :: CHUNK] = codes
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", ALL_ORDERS)
def test_what_is_packed_is_what_was_rounded(order: TileOrder, format: WeightFormat) -> None:
    tiles = packed(order, format, [slice(20, ROWS), slice(0, 20)])
    expected = quantize_weight(weight(), format)
    groups = tiles.scales[:, :, row_positions(order)].permute(0, 2, 1, 3)
    scales = groups.reshape(tiles.scales.shape[0] * TILE_ROWS, -1).float()
    num_groups = expected.scales.shape[1]
    assert torch.equal(scales[:ROWS, :num_groups], expected.scales)
    assert not scales[ROWS:].any() and not scales[:, num_groups:].any()
    zeros = torch.full_like(scales, 8.0)
    if tiles.zeros is not None:
        zeros = tiles.zeros[:, :, row_positions(order)].permute(0, 2, 1, 3).reshape(scales.shape)
    assert format.group_size is not None
    codes = unpacked(tiles, order) - zeros.repeat_interleave(format.group_size, 1).numpy().astype(
        int
    )
    assert np.array_equal(codes[:ROWS, :COLUMNS], expected.codes.numpy())


def test_slices_make_what_the_whole_makes() -> None:
    order, format = next(iter(ORDERS.values())), WEIGHT_FORMATS["int4-asym-a16"]
    whole = packed(order, format, [slice(0, ROWS)])
    parts = packed(order, format, [slice(33, ROWS), slice(0, 1), slice(1, 33)])
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scales, parts.scales)
    assert whole.zeros is not None and parts.zeros is not None
    assert torch.equal(whole.zeros, parts.zeros)
