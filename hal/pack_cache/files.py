"""A file that appears whole or not at all, whatever happens to the process that writes it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_SUFFIX = ".part"
_ABANDONED_S = 600.0  # a writer that lives has changed its file since


def replace_file(path: Path, write: Callable[[int], None]) -> None:
    """Have `write` fill a new file, then give it the name `path`; raises OSError.

    Processes that do this at once each write a file of their own, and the last name given stays.
    There is no fsync: after a power cut the file may be short or hold zeros, as it may after a
    fault of the disk, so whoever reads it checks it anyway.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write(fd)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def remove_abandoned(folder: Path) -> None:
    """Delete what writers that were killed left behind."""
    for part in folder.glob(f"*{_SUFFIX}"):
        try:
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                part.unlink()
        except OSError:
            continue  # another process was quicker, or it is not ours to delete
