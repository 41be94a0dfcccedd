"""Global memory: the arrays of a launch, each in its own place, bounds checked."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.errors import OutOfBoundsError

# Far apart, so that no offset of 32 bits leads from one allocation into another.
_FIRST_BASE = 1 << 40
_DISTANCE = 1 << 36
_ALIGNMENT = 256
_OF_NOTHING = _FIRST_BASE - _DISTANCE // 2  # far from every allocation
Addresses = NDArray[np.uint64]  # one for each active lane
Bytes = NDArray[np.uint8]
_UP_TO = np.arange(16)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Host memory that a kernel sees at `base`."""

    base: int
    bytes: Bytes
    words: NDArray[np.uint32]  # the same memory, whole words only
    is_aligned: bool
    is_read_only: bool = False

    @property
    def end(self) -> int:
        return self.base + len(self.bytes)


class Memory:
    """Allocations by address. Arrays that share host memory share an allocation."""

    def __init__(self) -> None:
        self._allocations: list[Allocation] = []
        self._bases: list[int] = []

    def add(self, arrays: Sequence[NDArray[Any]]) -> list[int]:
        """Address of each array's first element, as aligned as it is on the host, up to 256."""
        spans = sorted(_span(array) for array in arrays if array.size)
        merged: list[list[int]] = []
        for start, end in spans:
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        bases = [self._allocate(start, end) for start, end in merged]
        starts = [start for start, _ in merged]

        def address(array: NDArray[Any]) -> int:
            if not array.size:
                return _OF_NOTHING
            first = array.__array_interface__["data"][0]
            place = bisect_right(starts, first) - 1
            return bases[place] + int(first) - starts[place]

        return [address(array) for array in arrays]

    def _next_base(self) -> int:
        return _FIRST_BASE + len(self._allocations) * _DISTANCE

    def _allocate(self, start: int, end: int) -> int:
        host = (ctypes.c_uint8 * (end - start)).from_address(start)
        return self.place(np.ctypeslib.as_array(host), start % _ALIGNMENT)

    def place(self, data: Bytes, shift: int = 0, *, is_read_only: bool = False) -> int:
        """`shift`: of its address from a multiple of 256."""
        base = self._next_base() + shift
        words = data[: len(data) & ~3].view(np.uint32)
        self._allocations.append(Allocation(base, data, words, base % 4 == 0, is_read_only))
        self._bases.append(base)
        return base

    def _find(self, address: int, num_bytes: int) -> Allocation:
        place = bisect_right(self._bases, address) - 1
        if place >= 0 and address + num_bytes <= self._allocations[place].end:
            return self._allocations[place]
        raise OutOfBoundsError(self._described(address, num_bytes))

    def _described(self, address: int, num_bytes: int) -> str:
        place = bisect_right(self._bases, address) - 1
        if place < 0 or address - self._bases[place] >= _DISTANCE:
            # Below an allocation by less than the distance to the one before it.
            near = next((a for a in self._allocations if 0 < a.base - address < _DISTANCE), None)
            where = f"{near.base - address} bytes before an allocation" if near else "nowhere"
        else:
            found = self._allocations[place]
            offset = address - found.base
            where = f"offset {offset} of an allocation of {len(found.bytes)} bytes"
        return f"{num_bytes} bytes at {address:#x}, {where}"

    def read_scalar(self, address: int, num_words: int) -> list[int]:
        """Words at an address; scalar loads ignore its two lowest bits."""
        found = self._find(address & ~3, 4 * num_words)
        start = (address & ~3) - found.base
        return [int(w) for w in found.bytes[start : start + 4 * num_words].view(np.uint32)]

    def read(self, addresses: Addresses, num_bytes: int) -> NDArray[Any]:
        """[lanes, bytes] of up to 2 bytes, else words [lanes, num_bytes / 4]."""
        found, offsets = self._located(addresses, num_bytes)
        if num_bytes % 4 or not found.is_aligned or np.count_nonzero(offsets & 3):
            raw: NDArray[Any] = found.bytes[offsets[:, None] + _UP_TO[:num_bytes]]
            return raw.view(np.uint32) if num_bytes % 4 == 0 else raw
        words: NDArray[Any] = found.words[(offsets >> 2)[:, None] + _UP_TO[: num_bytes // 4]]
        return words

    def write(self, addresses: Addresses, data: NDArray[np.uint8]) -> None:
        """data [lanes, bytes]; of two lanes with one address the higher one wins."""
        found, offsets = self._located(addresses, data.shape[1], is_write=True)
        num_bytes = data.shape[1]
        if num_bytes % 4 or not found.is_aligned or np.count_nonzero(offsets & 3):
            found.bytes[offsets[:, None] + _UP_TO[:num_bytes]] = data
        else:
            places = (offsets >> 2)[:, None] + _UP_TO[: num_bytes // 4]
            found.words[places] = data.view(np.uint32)

    def _located(
        self, addresses: Addresses, num_bytes: int, *, is_write: bool = False
    ) -> tuple[Allocation, NDArray[np.int64]]:
        """One allocation for all lanes: what the kernels here do; raises OutOfBoundsError."""
        found = self._find(int(addresses[0]), num_bytes)
        offsets = addresses - np.uint64(found.base)
        # Addresses below the base wrap around to offsets beyond every end.
        if np.count_nonzero(offsets > len(found.bytes) - num_bytes):
            for address in addresses:
                other = self._find(int(address), num_bytes)
                if other is not found:
                    raise OutOfBoundsError(
                        f"lanes reach two allocations, at {found.base:#x} and {other.base:#x}"
                    )
        if is_write and found.is_read_only:
            raise OutOfBoundsError(f"a store into the kernel's arguments at {found.base:#x}")
        return found, offsets.view(np.int64)


def _span(array: NDArray[Any]) -> tuple[int, int]:
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)
