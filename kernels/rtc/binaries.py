"""Machine code on disk, beside the packed weights: compiled once for source, arch and compiler.

A file's name is a hash of all that it was made from, and it begins with that, so another compiler
or source never finds it. What is damaged, or could be someone else's, is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from hal.env import cache_folder, environment
from hal.pack_cache.files import replace_file
from hal.pack_cache.folder import CacheFolder, NoRoom
from hal.pack_cache.ownership import is_trusted
from hal.pack_cache.parallel import write_exactly

_logger = logging.getLogger("hal")
_DIGEST_BYTES = hashlib.sha256().digest_size


def kept_binary(key: Mapping[str, str], make: Callable[[], bytes]) -> bytes:
    """What `key` compiles to; `make` compiles, and its result is kept where that can be done."""
    base = cache_folder(environment())
    if base is None:
        return make()
    folder = CacheFolder(base / "compiled")
    stamp = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
    path = folder.entry(stamp.hex()[:40])
    binary = _read(path, stamp)
    if binary is not None:
        folder.touch(path)
        return binary
    binary = make()
    try:
        _write(folder, path, stamp, binary)
    except (NoRoom, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        _logger.info("compiled kernels are not kept in %s: %s", folder.path, reason)
    return binary


def _read(path: Path, stamp: bytes) -> bytes | None:
    """stamp | digest of the binary | binary; None for anything else."""
    try:
        with path.open("rb") as file:
            if not is_trusted(os.fstat(file.fileno())):
                return None
            content = file.read()
    except OSError:
        return None
    digest = content[len(stamp) : len(stamp) + _DIGEST_BYTES]
    binary = content[len(stamp) + _DIGEST_BYTES :]
    is_sound = content.startswith(stamp) and digest == hashlib.sha256(binary).digest()
    return binary if is_sound and binary else None


def _write(folder: CacheFolder, path: Path, stamp: bytes, binary: bytes) -> None:
    content = memoryview(stamp + hashlib.sha256(binary).digest() + binary)
    folder.make_room(content.nbytes)
    replace_file(path, lambda fd: write_exactly(fd, content, 0))
