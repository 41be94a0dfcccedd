"""What a cache folder holds, for people: of which model each entry is, and whether it is of use."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hal.pack_cache.cache import formats_hash, sources_of
from hal.pack_cache.checkpoint_hash import remembered_folders
from hal.pack_cache.entry import UnusableEntry, read_key
from hal.pack_cache.folder import CacheFolder
from hal.weights import WEIGHT_FORMATS


class State(StrEnum):
    """Whether a start here would read an entry, as far as its header tells."""

    OK = "ok"
    STALE = "stale"
    OTHER_DEVICE = "other device"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEntry:
    """One entry, the latest used first.

    model: the folder that its checkpoint was last seen in; "" where no start remembers it
    format: of most weights, "" where that is the model's own dtype or the header cannot be read
    used_at: seconds since 1970; reason: what is wrong where `state` is not ok
    """

    path: Path
    model: str
    format: str
    num_bytes: int
    used_at: float
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Current:
    """What makes an entry of use here; kernels must be registered."""

    device: str
    release: str


def list_entries(folder: Path, current: Current) -> tuple[ListedEntry, ...]:
    """Every entry; none where there is no folder. Deletes and changes nothing."""
    models = remembered_folders(folder / "hashes")
    listed = []
    for file in CacheFolder(folder).entries():
        model = format = reason = ""
        try:
            key = _Key(read_key(file.path))
            model, format = str(models.get(key.checkpoint, "")), key.format
            state, reason = key.judged(current)
        except FileNotFoundError:
            continue  # another process deleted it meanwhile
        except (UnusableEntry, OSError) as error:
            state, reason = State.UNUSABLE, str(error)
        listed.append(
            ListedEntry(
                path=file.path,
                model=model,
                format=format,
                num_bytes=file.num_bytes,
                used_at=file.used_at,
                state=state,
                reason=reason,
            )
        )
    return tuple(sorted(listed, key=lambda entry: entry.used_at, reverse=True))


class _Key:
    """The key of an entry, read again; raises UnusableEntry where it is of another shape."""

    def __init__(self, key: bytes) -> None:
        try:
            fields = json.loads(key)
            self.checkpoint = str(fields["checkpoint"])
            self._device = str(fields["device"])
            self._release = str(fields["release"])
            self._formats = str(fields["formats"])
            self._sources = dict(fields["sources"])
            layouts = [str(weight[1]) for weight in fields["weights"]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UnusableEntry("its key has another shape") from error
        names = (
            n for text in layouts for n, format in WEIGHT_FORMATS.items() if repr(format) in text
        )
        self.format = next((name for name, _ in Counter(names).most_common(1)), "")

    def judged(self, current: Current) -> tuple[State, str]:
        if self._release != current.release:
            return State.STALE, f"made by hal {self._release}; this is {current.release}"
        if self._formats != formats_hash():
            return State.STALE, "weight formats are defined otherwise now"
        if self._device != current.device:
            return State.OTHER_DEVICE, f"made for {self._device}"
        now = sources_of(self._sources)
        if changed := sorted(name for name, source in self._sources.items() if now[name] != source):
            return State.STALE, f"made by other sources of {', '.join(changed)}"
        return State.OK, ""
