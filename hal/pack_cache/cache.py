"""What one start does with the cache: look, read or make, keep; and the one line about it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hal import weights
from hal.device import Capabilities
from hal.env import CACHE_FOLDER
from hal.evidence.source import hash_of_file, source_of
from hal.memory import format_bytes
from hal.opset.stored import StoredForm
from hal.pack_cache.checkpoint_hash import CheckpointHasher
from hal.pack_cache.entry import OpenEntry, UnusableEntry, entry_bytes, write_entry
from hal.pack_cache.folder import CacheFolder, NoRoom

_logger = logging.getLogger("hal")

# Less is quantised in 30 ms (2 GB/s measured on two cores), so that an entry would save nothing.
LEAST_SOURCE_BYTES = 64 << 20
# Packing without rounding is a copy at memory speed: 1 GB took 0.2 s, and so does reading it back.
MOST_SHARE = 0.75
MADE = "made from the checkpoint"  # where weights come from without an entry
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWeight:
    """A family whose bytes may be kept.

    module: where its code is; tensors: which checkpoint tensors fill it, and where;
    source_bytes: their size in the checkpoint
    """

    form: StoredForm
    module: str
    tensors: tuple[str, ...]
    source_bytes: int


class PackCache:
    """The cache in `folder`, for kernels of `device` as made by `release`."""

    def __init__(self, folder: Path, *, device: str, release: str, num_threads: int) -> None:
        self.folder = folder
        self.device = device
        self.release = release
        self.num_threads = num_threads

    def open(self, files: Sequence[Path], kept: Sequence[KeptWeight]) -> PackedLoad:
        """Look for the entry of these weights, which come from these files."""
        return PackedLoad(self, files, kept)


class PackedLoad:
    """One load of a model: `read` where `is_found`, or else `keep` once the weights are made.

    Neither raises for anything on the disk: at most one line is logged, with what and why.
    outcome: the same for the start-up report, without paths
    """

    def __init__(self, cache: PackCache, files: Sequence[Path], kept: Sequence[KeptWeight]) -> None:
        self._cache = cache
        self._files = files
        self._kept = kept
        self._parts = [part for weight in kept for part in weight.form.parts]
        self._folder = CacheFolder(cache.folder)
        self._hasher = CheckpointHasher(cache.folder / "hashes", cache.num_threads)
        self._entry: OpenEntry | None = None
        self._fault = ""
        self.outcome = MADE
        self._started_at = time.perf_counter()
        self._key = self._key_of() if _is_worth_it(kept) else None
        if self._key is not None:
            self._path = self._folder.entry(hashlib.sha256(self._key).hexdigest()[:40])
            self._entry = self._find(self._key)

    @property
    def is_found(self) -> bool:
        """Whether there is an entry to read, as far as its header tells."""
        return self._entry is not None

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def read(self, advance: Callable[[int], None]) -> bool:
        """Fill every family from the entry; False where it is damaged: load them then."""
        assert self._entry is not None, "there is no entry to read"
        try:
            with self._entry as entry:
                entry.read(self._cache.num_threads, advance)
        except (UnusableEntry, OSError) as error:
            self._fault = _reason(error)
            self._clear()
            return False
        self._folder.touch(self._path)
        self._report(logging.INFO, f"packed weights from cache {self._path}")
        self.outcome = f"packed, from the cache on disk in {self._seconds:.1f} s"
        return True

    def keep(self) -> None:
        """Write what was loaded instead, unless it is not worth it or cannot be done."""
        if self._key is None:
            return
        self._started_at = time.perf_counter()
        why = self._write(self._key)
        took = f"kept in the cache on disk in {self._seconds:.1f} s"
        self.outcome += ", not kept (the log says why)" if why else f", {took}"
        if why:
            before = f"{self._path} could not be used ({self._fault}), and " if self._fault else ""
            _logger.warning(
                "%spacked weights are not kept in %s: %s", before, self._folder.path, why
            )
        elif self._fault:
            text = f"packed weights in cache {self._path} were made again: {self._fault}"
            self._report(logging.WARNING, text)
        else:
            self._report(logging.INFO, f"packed weights kept in cache {self._path}")

    def _find(self, key: bytes) -> OpenEntry | None:
        try:
            return OpenEntry(self._path, key, self._parts)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (UnusableEntry, OSError) as error:
            self._fault = _reason(error)
            return None

    def _write(self, key: bytes) -> str:
        """Why it was not done; empty where it was."""
        try:
            self._folder.make_room(entry_bytes(key, self._parts))
            # What was loaded is what was hashed only if the files are still the same.
            if self._key_of() != key:
                return "the checkpoint's files changed while they were loaded"
            write_entry(self._path, key, self._parts, self._cache.num_threads)
        except (NoRoom, OSError) as error:
            return (
                f"{_reason(error)}. Set {CACHE_FOLDER} to a folder on another disk, or --no-cache"
            )
        return ""

    def _key_of(self) -> bytes | None:
        """Everything that shapes the bytes; None where a part of it cannot be known."""
        sources = sources_of({weight.module for weight in self._kept})
        if None in sources.values():
            return None
        try:
            checkpoint = self._hasher.hash_of(self._files)
        except OSError:
            return None  # loading meets the same error, and reports it
        key = {
            "checkpoint": checkpoint,
            "device": self._cache.device,
            "release": self._cache.release,
            "formats": formats_hash(),
            "sources": sources,
            "weights": [
                [w.module, w.form.layout, [part.nbytes for part in w.form.parts], w.tensors]
                for w in self._kept
            ],
        }
        return json.dumps(key, sort_keys=True).encode()

    def _clear(self) -> None:
        """Undo a read that failed: families expect their padding to be zero."""
        for part in self._parts:
            for start in range(0, part.nbytes, len(_ZEROS)):
                piece = part[start : start + len(_ZEROS)]
                piece[:] = _ZEROS[: piece.nbytes]

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._started_at

    def _report(self, level: int, what: str) -> None:
        _logger.log(level, "%s, %s in %.1f s", what, format_bytes(self.num_bytes), self._seconds)


def device_label(caps: Capabilities) -> str:
    """Kernels may pack differently for each arch and its features."""
    return f"{caps.arch}: {caps.feature_names()}"


def formats_hash() -> str:
    """Of the definition of all weight formats."""
    return hash_of_file(Path(weights.__file__))


def sources_of(modules: Iterable[str]) -> dict[str, str | None]:
    """What each kernel module was made from; None where that is not known."""
    found = {name: source_of(name) for name in sorted(modules)}
    return {name: None if source is None else str(source) for name, source in found.items()}


def _reason(error: Exception) -> str:
    """The system's words alone: the line has the path already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_worth_it(kept: Sequence[KeptWeight]) -> bool:
    source_bytes = sum(weight.source_bytes for weight in kept)
    stored_bytes = sum(weight.form.num_bytes for weight in kept)
    return source_bytes >= LEAST_SOURCE_BYTES and 0 < stored_bytes <= MOST_SHARE * source_bytes
