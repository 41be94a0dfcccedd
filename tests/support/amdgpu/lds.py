"""Local data share of one workgroup: bounds, and races between waves.

Between two barriers no byte may be written by one wave and touched by another: what would depend on
which wave ran first. Writing what is there already is no race: compilers let waves that hold copies
of a value write it all. A write under way at a barrier, which no s_waitcnt waited for, counts as
one of the time after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.errors import LdsRaceError, OutOfBoundsError

Offsets = NDArray[np.int64]  # of the first byte, one for each active lane
_WORD = 4


@dataclass(frozen=True, slots=True)
class _Units:
    """The same memory by bytes or by words. size: bytes of a unit.

    data, defined, readers, writers: one element a unit; of the last two 16 bits for each byte of
    it, one for each wave of a workgroup
    """

    size: int
    data: NDArray[Any]
    defined: NDArray[Any]
    readers: NDArray[Any]
    writers: NDArray[Any]

    def of_wave(self, wave: int) -> Any:
        """Its bit for every byte of a unit."""
        return self.readers.dtype.type(
            (1 << wave) * (0x0001_0001_0001_0001 >> 16 * (4 - self.size))
        )


@dataclass(frozen=True, slots=True)
class Region:
    """Units that one access touches: [lanes, units]."""

    units: _Units
    places: NDArray[np.int64]

    @property
    def first_byte(self) -> int:
        return int(self.places[0, 0]) * self.units.size

    @property
    def last_byte(self) -> int:
        return (int(self.places[-1, -1]) + 1) * self.units.size - 1


class Lds:
    """size: bytes. All of them start undefined."""

    def __init__(self, size: int) -> None:
        self._size = size
        padded = -(-size // _WORD) * _WORD
        arrays = (
            np.zeros(padded, np.uint8),
            np.zeros(padded, np.uint8),
            np.zeros(padded, np.uint16),
            np.zeros(padded, np.uint16),
        )
        data, defined, readers, writers = arrays
        self._bytes = _Units(1, *arrays)
        self._words = _Units(
            _WORD,
            data.view(np.uint32),
            defined.view(np.uint32),
            readers.view(np.uint64),
            writers.view(np.uint64),
        )

    def read(self, wave: int, offsets: Offsets, num_bytes: int) -> NDArray[np.uint8]:
        """[lanes, num_bytes]."""
        region = self._region(offsets, num_bytes)
        units, places = region.units, region.places
        self._check(units, units.writers[places], wave, places, ("reads", "wrote"))
        units.readers[places] |= units.of_wave(wave)
        found: NDArray[np.uint8] = units.data[places].view(np.uint8)
        return found

    def undefined(self, offsets: Offsets, num_bytes: int) -> NDArray[np.bool_]:
        """[lanes]: where any of the bytes was never written."""
        region = self._region(offsets, num_bytes)
        whole = 0x01010101 if region.units.size == _WORD else 1
        return np.asarray((region.units.defined[region.places] != whole).any(axis=1))

    def write(self, wave: int, offsets: Offsets, data: NDArray[np.uint8]) -> Region:
        """data [lanes, bytes]; returns what was written, for mark_pending."""
        region = self._region(offsets, data.shape[1])
        units, places = region.units, region.places
        values = np.ascontiguousarray(data).view(units.data.dtype)
        is_changed = units.data[places] != values
        if np.count_nonzero(is_changed):
            changed = places[is_changed]
            self._check(units, units.writers[changed], wave, changed, ("writes", "wrote"))
            self._check(units, units.readers[changed], wave, changed, ("writes", "read"))
        units.writers[places] |= units.of_wave(wave)
        units.defined[places] = 0x01010101 if units.size == _WORD else 1
        units.data[places] = values
        return region

    def pass_barrier(self) -> None:
        self._bytes.readers[:] = 0
        self._bytes.writers[:] = 0

    def mark_pending(self, wave: int, region: Region) -> None:
        """A write that was under way when the barrier was passed."""
        region.units.writers[region.places] |= region.units.of_wave(wave)

    def _region(self, offsets: Offsets, num_bytes: int) -> Region:
        is_outside = (offsets < 0) | (offsets > self._size - num_bytes)
        if np.count_nonzero(is_outside):
            offset = int(offsets[is_outside.argmax()])
            raise OutOfBoundsError(
                f"{num_bytes} bytes at offset {offset} of {self._size} bytes of LDS"
            )
        if num_bytes % _WORD or np.count_nonzero(offsets % _WORD):
            return Region(self._bytes, offsets[:, None] + np.arange(num_bytes))
        first = (offsets // _WORD)[:, None]
        return Region(self._words, first + np.arange(num_bytes // _WORD))

    @staticmethod
    def _check(
        units: _Units,
        waves: NDArray[Any],
        wave: int,
        places: NDArray[np.int64],
        verbs: tuple[str, str],
    ) -> None:
        others = waves & ~units.of_wave(wave)
        if np.count_nonzero(others):
            bits = int(others[others != 0][0])
            byte, number = divmod((bits & -bits).bit_length() - 1, 16)
            place = int(places[others != 0][0]) * units.size + byte
            does, did = verbs
            raise LdsRaceError(
                f"wave {wave} {does} byte {place} of LDS, which wave {number} {did} with no "
                "barrier between them"
            )
