"""The step arena hands out the same views while a step repeats."""

from __future__ import annotations

from hal.binding import Arena
from hal.devices.cpu import CpuDevice
from hal.dtypes import DType


def test_equal_numbers_of_rows_are_one_object_until_the_arena_is_made_anew() -> None:
    arena = Arena(max_tokens=8)
    buffer = arena.buffer("x", 3, DType.FLOAT32)
    arena.allocate(CpuDevice())
    one = buffer.rows(1)
    assert buffer.rows(1) is one
    assert buffer.rows(8).shape == (8, 3)
    assert buffer.rows(1).shape == (1, 3)
    last = buffer.rows(1)
    arena.allocate(CpuDevice())
    assert buffer.rows(1) is not last
