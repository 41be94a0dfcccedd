"""The folder of entries: how much it may hold, and which entry goes first."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hal.memory import format_bytes
from hal.pack_cache.files import remove_abandoned

ENTRY_SUFFIX = ".packed"
MOST_BYTES = 64 << 30
DISK_SHARE = 4  # one part in so many of what would be free without the cache


class NoRoom(Exception):
    """An entry is larger than the folder may become; the text has the numbers."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """One entry's file; `used_at` in seconds since 1970."""

    path: Path
    num_bytes: int
    used_at: float


class CacheFolder:
    """Entries by name; the time of last change of a file is when it was last used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entry(self, name: str) -> Path:
        return self.path / f"{name}{ENTRY_SUFFIX}"

    def touch(self, entry: Path) -> None:
        """Note that it was used; one in a folder that cannot be written to is used all the same."""
        try:
            os.utime(entry)
        except OSError:
            return

    def make_room(self, num_bytes: int) -> None:
        """Delete the entries used longest ago until one of `num_bytes` may be written.

        Raises NoRoom, with nothing deleted, and OSError. The limit leaves three quarters of the
        disk's free space free, so an entry within it fits.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_abandoned(self.path)
        limit = self.limit_bytes()
        if num_bytes > limit:
            free = shutil.disk_usage(self.path).free
            raise NoRoom(
                f"they take {format_bytes(num_bytes)} and the cache may hold "
                f"{format_bytes(limit)} there; {format_bytes(free)} of the disk are free"
            )
        self.shrink(limit - num_bytes)

    def limit_bytes(self) -> int:
        """What all entries together may take: raises OSError where the folder is not there."""
        free, held = shutil.disk_usage(self.path).free, sum(e.num_bytes for e in self.entries())
        return min(MOST_BYTES, (free + held) // DISK_SHARE)

    def shrink(self, num_bytes: int) -> list[KeptFile]:
        """Delete the entries used longest ago until the rest takes at most that; raises OSError."""
        entries = sorted(self.entries(), key=lambda entry: entry.used_at)
        held = sum(entry.num_bytes for entry in entries)
        gone = []
        for entry in entries:
            if held <= num_bytes:
                break
            entry.path.unlink(missing_ok=True)
            held -= entry.num_bytes
            gone.append(entry)
        return gone

    def entries(self) -> list[KeptFile]:
        """Those that are there, in no order; none where there is no folder."""
        found = []
        for path in self.path.glob(f"*{ENTRY_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process deleted it meanwhile
            found.append(KeptFile(path, status.st_size, status.st_mtime))
        return found
