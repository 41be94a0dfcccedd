"""Read safetensors checkpoints by memory map: check first, then hand out slices without a copy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hal.dtypes import DType
from hal.engine.checkpoint import list_shards
from hal.errors import WeightsError
from hal.tensor import Tensor
from hal.weights import LogicalWeight

# Buffers that older exporters saved beside the parameters; their values are recomputed.
HARMLESS_NAMES = (
    r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    r"(^|\.)attn\.(bias|masked_bias)$",
)

_SAFETENSORS_DTYPES = {
    "F64": DType.FLOAT64,
    "F32": DType.FLOAT32,
    "F16": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "F8_E4M3": DType.FLOAT8_E4M3FN,
    "F8_E4M3FNUZ": DType.FLOAT8_E4M3FNUZ,
    "F8_E5M2": DType.FLOAT8_E5M2,
    "I64": DType.INT64,
    "I32": DType.INT32,
    "I8": DType.INT8,
    "U8": DType.UINT8,
    "BOOL": DType.UINT8,
}

_LFS_POINTER = b"version https://git-lfs"
_MAX_LISTED = 5


class _HostTensor(Tensor, Protocol):
    """A tensor in host memory: it can be transposed as a view."""

    def t(self) -> Self: ...


class _Slice(Protocol):
    """What safetensors' get_slice returns."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, rows: slice, /) -> _HostTensor: ...


class _Shard(Protocol):
    """An open safetensors file."""

    def offset_keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> _HostTensor: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor stands."""

    path: Path
    shape: tuple[int, ...]
    dtype: DType

    @property
    def num_bytes(self) -> int:
        num_elements = 1
        for size in self.shape:
            num_elements *= size
        return self.dtype.num_bytes(num_elements)


class CheckpointReader:
    """All tensors of a model folder; opening it checks every header against its file.

    Raises WeightsError naming the file, and the tensor where one is at fault. Tensors that were
    handed out keep their file mapped; the reader itself maps one shard at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        listing = list_shards(folder)
        for path in listing.paths:
            self._add_shard(path)
        for name, path in listing.weight_map.items():
            self._check_indexed(name, path)
        self._current: tuple[Path, _Shard] | None = None
        self.num_bytes_read = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(dict.fromkeys(entry.path for entry in self._entries.values()))

    def names(self) -> tuple[str, ...]:
        """Every tensor name, shard by shard in file order: reading so touches each page once."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> DType:
        return self._entry(name).dtype

    def num_bytes(self, name: str) -> int:
        return self._entry(name).num_bytes

    @property
    def total_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values())

    def read(
        self,
        name: str,
        rows: range | None = None,
        columns: range | None = None,
        *,
        transposed: bool = False,
    ) -> LogicalWeight:
        """The tensor, or its outputs `rows` and inputs `columns`, as a view of the mapped file.

        `transposed` is for weights stored as [inputs, outputs]. Nothing beside the view is read.
        """
        entry = self._entry(name)
        values = self._open_shard(entry.path).get_tensor(name)
        if transposed:
            values = values.t()
        if rows is not None:
            values = values[rows.start : rows.stop]
        if columns is not None:
            values = values.t()[columns.start : columns.stop].t()
        self.num_bytes_read += entry.dtype.num_bytes(math.prod(values.shape))
        return LogicalWeight(values=values, dtype=entry.dtype)

    def close(self) -> None:
        """Forget the open shard; its pages go when the last tensor of it goes."""
        if self._current is not None:
            self._current[1].__exit__(None, None, None)
            self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise WeightsError(f"{self.folder} has no tensor {name!r}")
        return entry

    def _open_shard(self, path: Path) -> _Shard:
        if self._current is None or self._current[0] != path:
            self.close()
            self._current = (path, _open(path))
        return self._current[1]

    def _add_shard(self, path: Path) -> None:
        with _open(path) as shard:
            for name in shard.offset_keys():
                if name in self._entries:
                    raise WeightsError(
                        f"tensor {name!r} stands in both {self._entries[name].path.name} and "
                        f"{path.name}; remove the file that is not part of the checkpoint"
                    )
                self._entries[name] = _entry_of(path, name, shard.get_slice(name))

    def _check_indexed(self, name: str, path: Path) -> None:
        entry = self._entries.get(name)
        if entry is None or entry.path != path:
            raise WeightsError(
                f"the index says that {path} holds {name!r}; it does not. "
                "Download the checkpoint again."
            )


def _open(path: Path) -> _Shard:
    from safetensors import SafetensorError, safe_open

    try:
        shard: _Shard = safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(_damage(path, error)) from error
    return shard


def _damage(path: Path, error: Exception) -> str:
    size = path.stat().st_size if path.is_file() else 0
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder"
    return (
        f"{path} ({size} bytes) is not a complete safetensors file: {error}. "
        "Download the file again."
    )


def _entry_of(path: Path, name: str, view: _Slice) -> _Entry:
    label = view.get_dtype()
    dtype = _SAFETENSORS_DTYPES.get(label)
    if dtype is None:
        raise WeightsError(
            f"{path}: tensor {name!r} has the element type {label}, which is not known"
        )
    return _Entry(path, tuple(view.get_shape()), dtype)


def check_names(
    expected: Mapping[str, Sequence[int]],
    reader: CheckpointReader,
    ignorable: Iterable[str] = (),
) -> None:
    """Compare what the model needs with what the checkpoint has, before a byte is loaded.

    `ignorable` are patterns of extra names, beside HARMLESS_NAMES. Raises WeightsError that lists
    missing and extra tensors and those of another shape.
    """
    patterns = [re.compile(pattern) for pattern in (*HARMLESS_NAMES, *ignorable)]
    missing = [name for name in expected if name not in reader]
    extra = [
        name
        for name in reader.names()
        if name not in expected and not any(pattern.search(name) for pattern in patterns)
    ]
    faults = [
        *_named("missing", missing),
        *_named("not part of this architecture", extra),
        *_named("of another shape", list(_shape_faults(expected, reader))),
    ]
    if faults:
        raise WeightsError(
            f"{reader.folder} does not match its config.json: {'; '.join(faults)}. "
            "Check that config.json belongs to these weights."
        )


def _shape_faults(expected: Mapping[str, Sequence[int]], reader: CheckpointReader) -> Iterator[str]:
    for name, shape in expected.items():
        if name in reader and reader.shape(name) != tuple(shape):
            yield f"{name} is {list(reader.shape(name))}, expected {list(shape)}"


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    plural = "" if len(names) == 1 else "s"
    return [f"{len(names)} tensor{plural} {what}: {', '.join(names[:_MAX_LISTED])}{rest}"]
