"""A weight of int4 codes in the order in which lanes of a matrix instruction hold them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from hal.device import Device
from hal.dtypes import DType
from hal.kernels.reference.quantized_rows import QuantizedRows, nibbles, quantized_parts
from hal.kernels.reference.tensors import as_torch
from hal.kernels.rtc.arch import TileOrder
from hal.tensor import Tensor
from hal.weights import LogicalWeight, WeightFormat

Empty = Callable[[tuple[int, ...], DType], Tensor]
TILE_ROWS = 16
CHUNK = 128  # columns of a tile that stand together
_SLABS, _PIECES = 4, 4  # a chunk is 4 slabs of 32 columns, a slab 4 pieces of 8
_CHUNK_WORDS = TILE_ROWS * _SLABS * _PIECES
# Of a word's bytes: the columns of a piece in their lower and upper halves. Columns 2i and 2i + 1
# are then nibbles i and i + 4, which one mask takes out as a pair.
_LOWER, _UPPER = [0, 4, 1, 5], [2, 6, 3, 7]


@cache
def word_positions(order: TileOrder) -> NDArray[np.int64]:
    """[row, slab, piece] -> its word among those of a chunk: a permutation of 256.

    A lane's words come slab by slab, in each row by row, and go to memory four at a time, those of
    all lanes side by side.
    """
    positions = np.full((TILE_ROWS, _SLABS, _PIECES), -1, np.int64)
    slab_words = order.lane_rows * order.lane_pieces
    for lane in range(order.code_lanes):
        for n in range(_SLABS * slab_words):
            slab, (i, j) = n // slab_words, divmod(n % slab_words, order.lane_pieces)
            word = (n // 4 * order.code_lanes + lane) * 4 + n % 4
            positions[order.row(lane, i), slab, order.piece(lane, j)] = word
    return positions


@cache
def row_positions(order: TileOrder) -> NDArray[np.int64]:
    """[row] -> its place among the scales of a tile: those of a lane side by side."""
    positions = np.full(TILE_ROWS, -1, np.int64)
    for lane in range(order.code_lanes):
        for i in range(order.lane_rows):
            positions[order.row(lane, i)] = order.row(lane, 0) * order.lane_rows + i
    return positions


class Int4Tiles:
    """codes [tiles, chunks, 256 words, 4] uint8, scales [tiles, chunks, 16, groups] bfloat16, and
    zeros of the same shape in uint8 where the format has them.

    Rows are padded to tiles of 16 and columns to chunks of 128, with scales of 0.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    def __init__(self, rows: int, columns: int, format: WeightFormat, order: TileOrder) -> None:
        assert format.group_size is not None, f"{format} has no groups"
        self._format = format
        self._order = order
        self._groups = CHUNK // format.group_size  # of a row of a chunk
        self._tiles, self._chunks = -(-rows // TILE_ROWS), -(-columns // CHUNK)

    @property
    def num_bytes(self) -> int:
        of_a_group = 3 if self._format.has_zeros else 2
        of_a_chunk = _CHUNK_WORDS * 4 + TILE_ROWS * self._groups * of_a_group
        return self._tiles * self._chunks * of_a_chunk

    def allocate(self, device: Device) -> None:
        self.make(device.empty)

    def make(self, empty: Empty) -> None:
        """The same with memory from elsewhere."""
        outer = (self._tiles, self._chunks)
        groups = (*outer, TILE_ROWS, self._groups)
        self.codes = as_torch(empty((*outer, _CHUNK_WORDS, 4), DType.UINT8)).zero_()
        self.scales = as_torch(empty(groups, DType.BFLOAT16)).zero_()
        if self._format.has_zeros:
            self.zeros = as_torch(empty(groups, DType.UINT8)).zero_()

    def load(self, first_row: int, weight: LogicalWeight) -> None:
        """Quantise rows first_row.. as the reference does."""
        for first, part in quantized_parts(weight, self._format):
            self._store(first_row + first, part)

    def _store(self, first_row: int, part: QuantizedRows) -> None:
        rows = torch.arange(first_row, first_row + len(part.codes))
        found = nibbles(part, self._chunks * CHUNK, has_zeros=self._format.has_zeros)
        pieces = found.codes.view(len(rows), self._chunks, _SLABS * _PIECES, 8)
        words = pieces[..., _LOWER] | (pieces[..., _UPPER] << 4)
        positions = torch.from_numpy(word_positions(self._order)).view(TILE_ROWS, -1)
        _scatter(self.codes, rows, positions[rows % TILE_ROWS], words)
        places = torch.from_numpy(row_positions(self._order))[rows % TILE_ROWS, None]
        shape = (len(rows), self._chunks, 1, self._groups)
        scales = pad(part.scales, (0, self._chunks * self._groups - part.scales.shape[1]))
        _scatter(self.scales, rows, places, scales.bfloat16().view(shape))
        if self.zeros is not None:
            assert found.zeros is not None
            _scatter(self.zeros, rows, places, found.zeros.view(shape))


def _scatter(
    target: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, values: torch.Tensor
) -> None:
    """target[tile of a row, chunk, position] = values [rows, chunks, positions, *]."""
    chunks = torch.arange(values.shape[1])
    index = (rows[:, None, None] // TILE_ROWS, chunks[None, :, None], positions[:, None, :])
    target[tuple(part.to(target.device) for part in index)] = values.to(target.device)
