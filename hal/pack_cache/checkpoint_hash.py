"""The hash of a checkpoint's weight files, and a memo that spares reading them again.

A file is hashed in pieces by several threads (1.8 GB/s each where the CPU has SHA instructions).
That still reads all of it, so its hash is kept with what the file system says of the file: device,
inode, size, times of last change and last status change. No program can set the last one, so a file
that was written to, replaced, or given back its old times is hashed again. Two gaps are closed:
changes within one tick of the clock that stamps them, and writes through a memory map, which stamp
a page once until it is written back (30 s). A file is therefore remembered only when it had not
changed for a minute before it was read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hal.pack_cache.files import replace_file
from hal.pack_cache.ownership import is_trusted
from hal.pack_cache.parallel import in_threads, read_exactly

_PIECE_BYTES = 16 << 20
_READ_BYTES = 1 << 20  # stays in a core's cache from reading to hashing
_SETTLED_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class _Piece:
    fd: int
    offset: int
    num_bytes: int


class CheckpointHasher:
    """Hashes weight files; `folder` keeps the memo."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        self._folder = folder
        self._num_threads = num_threads

    def hash_of(self, paths: Sequence[Path]) -> str:
        """Of the names and contents of all; raises OSError where a file cannot be read."""
        return _total({path.name: self._hash_of_file(path) for path in paths})

    def _hash_of_file(self, path: Path) -> str:
        with path.open("rb", buffering=0) as file:
            started_at = time.time_ns()
            status = os.fstat(file.fileno())
            known = self._recall(path, status)
            if known is not None:
                return known
            found = _content_hash(file.fileno(), status.st_size, self._num_threads)
            if _identity(os.fstat(file.fileno())) == _identity(status):
                last_change = max(status.st_mtime_ns, status.st_ctime_ns)
                if last_change + _SETTLED_NS < started_at:
                    self._remember(path, status, found)
        return found

    def _memo_of(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        return self._folder / f"{name}.json"

    def _recall(self, path: Path, status: os.stat_result) -> str | None:
        """What is damaged or of another shape is as good as nothing: the file is hashed again."""
        try:
            with self._memo_of(path).open("rb") as file:
                if not is_trusted(os.fstat(file.fileno())):
                    return None
                memo = json.load(file)
            same = memo["identity"] == _identity(status)
            return str(memo["sha256"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, path: Path, status: os.stat_result, found: str) -> None:
        """Where this fails the next start hashes again; a folder that cannot be written to is
        reported when the entry is."""
        text = json.dumps(
            {"file": str(path.absolute()), "identity": _identity(status), "sha256": found}
        )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._memo_of(path), lambda fd: _write_all(fd, text.encode()))
        except OSError:
            return


def remembered_folders(memos: Path) -> dict[str, Path]:
    """Hash of a checkpoint -> a folder that held it, of those whose files are all remembered."""
    folders: dict[Path, dict[str, str]] = {}
    for path in sorted(memos.glob("*.json")):
        try:
            memo = json.loads(path.read_bytes())
            file, found = Path(memo["file"]), str(memo["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # as good as nothing, as in `_recall`
        folders.setdefault(file.parent, {})[file.name] = found
    return {_total(files): folder for folder, files in folders.items()}


def _total(files: Mapping[str, str]) -> str:
    """Of the checkpoint that these files make up."""
    lines = sorted(f"{name} {found}" for name, found in files.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_all(fd: int, data: bytes) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)


def _identity(status: os.stat_result) -> list[int]:
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]


def _content_hash(fd: int, size: int, num_threads: int) -> str:
    """sha256 over the sha256 of each piece."""
    total = hashlib.sha256(f"{size} ".encode())
    in_threads(_hash_piece, _pieces(fd, size), num_threads, total.update)
    return total.hexdigest()


def _pieces(fd: int, size: int) -> Iterator[_Piece]:
    for offset in range(0, size, _PIECE_BYTES):
        yield _Piece(fd, offset, min(_PIECE_BYTES, size - offset))


def _hash_piece(piece: _Piece) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_READ_BYTES, piece.num_bytes)))
    for done in range(0, piece.num_bytes, _READ_BYTES):
        part = buffer[: piece.num_bytes - done]
        if not read_exactly(piece.fd, part, piece.offset + done):
            raise OSError("the file became shorter while it was hashed")
        digest.update(part)
    return digest.digest()
