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
class _Entry:
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
        entries = self._entries()
        held = sum(entry.num_bytes for entry in entries)
        free = shutil.disk_usage(self.path).free
        limit = min(MOST_BYTES, (free + held) // DISK_SHARE)
        if num_bytes > limit:
            raise NoRoom(
                f"they take {format_bytes(num_bytes)} and the cache may hold "
                f"{format_bytes(limit)} there; {format_bytes(free)} of the disk are free"
            )
        for entry in sorted(entries, key=lambda entry: entry.used_at):
            if held + num_bytes <= limit:
                break
            entry.path.unlink(missing_ok=True)
            held -= entry.num_bytes

    def _entries(self) -> list[_Entry]:
        found = []
        for path in self.path.glob(f"*{ENTRY_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process deleted it meanwhile
            found.append(_Entry(path, status.st_size, status.st_mtime))
        return found
