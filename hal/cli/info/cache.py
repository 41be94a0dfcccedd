"""`hal-info cache`: the packed weights that are kept on disk, and how to be rid of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.cli.info.columns import hanging
from hal.env import CACHE_FOLDER, cache_folder
from hal.errors import ConfigError
from hal.memory import format_bytes, parse_size

if TYPE_CHECKING:
    from hal.pack_cache.folder import KeptFile
    from hal.pack_cache.listing import ListedEntry

PROG = "hal-info cache"
SCHEMA_VERSION = 1
_DESCRIPTION = (
    "Lists the packed weights that starts keep on disk: model, format, bytes, when they were last "
    "used, and whether a start here would read them. Deleting any of them at any time is safe: the "
    "next start makes them again. Exit code 2: the folder cannot be read, or nothing deleted in it."
)
_FLAGS = FlagGroup(
    "what to do",
    (
        Flag(name="clear", help="delete every entry", convert=None),
        Flag(
            name="max-bytes",
            help="delete those used longest ago until the rest takes at most SIZE, as 20GiB",
            metavar="SIZE",
            convert=str,
        ),
        Flag(name="json", help="print one JSON object instead of text", convert=None),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The folder after what was asked for; limit_bytes is None where the folder is not there."""

    folder: Path
    limit_bytes: int | None
    entries: tuple[ListedEntry, ...]
    deleted: tuple[KeptFile, ...]

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)

    def as_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA_VERSION,
            "folder": str(self.folder),
            "limit_bytes": self.limit_bytes,
            "num_bytes": self.num_bytes,
            "entries": [{**asdict(e), "path": str(e.path)} for e in self.entries],
            "deleted": [{"path": str(e.path), "num_bytes": e.num_bytes} for e in self.deleted],
        }


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """List, after deleting what was asked for."""
    line = CommandLine(PROG, _DESCRIPTION, [_FLAGS], takes_model=False)
    values = line.parse(argv, environ)
    report = collect(_folder(environ), most_bytes(values))
    print(
        json.dumps(report.as_json(), indent=2) if values.get("json") else "\n".join(_text(report))
    )
    return 0


def most_bytes(values: Mapping[str, object]) -> int | None:
    """To what the folder shall shrink; None leaves it alone."""
    size = values.get("max_bytes")
    if not values.get("clear"):
        return None if size is None else parse_size(str(size))
    if size is not None:
        raise ConfigError("--clear deletes everything, so --max-bytes means nothing beside it")
    return 0


def _folder(environ: Mapping[str, str]) -> Path:
    folder = cache_folder(environ)
    if folder is None:
        raise ConfigError(f"this user has no home to keep a cache in; set {CACHE_FOLDER}")
    return folder


def collect(folder: Path, most: int | None) -> CacheReport:
    """Shrink the folder to `most` bytes, if any, and list it; raises ConfigError."""
    import hal
    import hal.kernels  # whose sources tell which entries are stale
    from hal.devices.host import cpu_capabilities
    from hal.pack_cache.cache import device_label
    from hal.pack_cache.folder import CacheFolder
    from hal.pack_cache.listing import Current, list_entries

    hal.kernels.register_all()
    cache = CacheFolder(folder)
    try:
        is_there = _is_there(folder)
        deleted = cache.shrink(most) if most is not None else []
        return CacheReport(
            folder=folder,
            limit_bytes=cache.limit_bytes() if is_there else None,
            entries=list_entries(
                folder, Current(device_label(cpu_capabilities()), hal.__version__)
            ),
            deleted=tuple(deleted),
        )
    except OSError as error:
        raise ConfigError(
            f"the cache in {folder}: {error.strerror}. Give this user the right to it, or set "
            f"{CACHE_FOLDER} to another folder"
        ) from error


def _is_there(folder: Path) -> bool:
    """Raises OSError for a file, and for a folder that this user may not list."""
    if not folder.exists():
        return False
    next(folder.iterdir(), None)
    return True


def _text(report: CacheReport) -> Iterator[str]:
    count = "1 entry" if len(report.entries) == 1 else f"{len(report.entries)} entries"
    limit = report.limit_bytes
    room = "the folder is not there yet" if limit is None else f"of at most {format_bytes(limit)}"
    yield f"{report.folder}\n{count}, {format_bytes(report.num_bytes)}, {room}"
    if report.deleted:
        freed = sum(entry.num_bytes for entry in report.deleted)
        yield f"deleted {len(report.deleted)}, {format_bytes(freed)}"
    if report.entries:
        yield f"\n{'format':<14} {'size':>10}  {'last used':<16}  {'state':<12}  model"
    for entry in report.entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at))
        size = format_bytes(entry.num_bytes)
        yield (
            f"{entry.format or 'as the model':<14} {size:>10}  {used:<16}  {entry.state:<12}  "
            f"{entry.model or 'not known'}"
        )
        if entry.reason:
            yield hanging(entry.reason, " " * 4, " " * 4)
