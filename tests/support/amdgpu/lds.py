"""Local data share of one workgroup: bounds, and races between waves.

Between two barriers no byte may be written by one wave and touched by another: what would depend on
which wave ran first. Writing what is there already is no race: compilers let waves that hold copies
of a value write it all. A write under way at a barrier, which no s_waitcnt waited for, counts as
one of the time after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdgpu.errors import LdsRaceError, OutOfBoundsError

Offsets = NDArray[np.int64]  # of the first byte, one for each active lane
# One bit for each wave of a workgroup, at most 1024 threads of 64 lanes.
_Waves = np.uint16


class Lds:
    """size: bytes. All of them start undefined."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)
        self._is_defined = np.zeros(size, np.bool_)
        self._readers = np.zeros(size, _Waves)
        self._writers = np.zeros(size, _Waves)

    def read(self, wave: int, offsets: Offsets, num_bytes: int) -> NDArray[np.uint8]:
        """[lanes, num_bytes]."""
        places = self._places(offsets, num_bytes)
        self._check(self._writers[places], wave, places, "reads", "wrote")
        self._readers[places] |= _Waves(1 << wave)
        return self.bytes[places]

    def undefined(self, offsets: Offsets, num_bytes: int) -> NDArray[np.bool_]:
        """[lanes]: where any of the bytes was never written."""
        is_defined = self._is_defined[self._places(offsets, num_bytes)]
        return np.asarray(~is_defined.all(axis=1))

    def write(self, wave: int, offsets: Offsets, data: NDArray[np.uint8]) -> Any:
        """data [lanes, bytes]; returns the places written, for mark_pending."""
        places = self._places(offsets, data.shape[1])
        is_changed = self.bytes[places] != data
        if is_changed.any():
            changed = places[is_changed]
            self._check(self._writers[changed], wave, changed, "writes", "wrote")
            self._check(self._readers[changed], wave, changed, "writes", "read")
        self._writers[places] |= _Waves(1 << wave)
        self._is_defined[places] = True
        self.bytes[places] = data
        return places

    def pass_barrier(self) -> None:
        self._readers[:] = 0
        self._writers[:] = 0

    def mark_pending(self, wave: int, places: Any) -> None:
        """Writes that were under way when the barrier was passed."""
        self._writers[places] |= _Waves(1 << wave)

    def _places(self, offsets: Offsets, num_bytes: int) -> NDArray[np.int64]:
        is_outside = (offsets < 0) | (offsets > len(self.bytes) - num_bytes)
        if is_outside.any():
            offset = int(offsets[is_outside.argmax()])
            raise OutOfBoundsError(
                f"{num_bytes} bytes at offset {offset} of {len(self.bytes)} bytes of LDS"
            )
        return offsets[:, None] + np.arange(num_bytes)

    @staticmethod
    def _check(
        waves: NDArray[np.uint16], wave: int, places: NDArray[np.int64], does: str, did: str
    ) -> None:
        others = waves & _Waves(~(1 << wave) & 0xFFFF)
        if others.any():
            place = int(places[others != 0][0])
            other = int(others[others != 0][0]).bit_length() - 1
            raise LdsRaceError(
                f"wave {wave} {does} byte {place} of LDS, which wave {other} {did} with no barrier "
                "between them"
            )
