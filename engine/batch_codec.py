"""A Batch as bytes, for the other ranks: they run the same step and answer nothing.

What only the answer needs stays out: log probabilities and hidden states.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hal.engine.batch import Batch, Int32, SamplingBatch, SamplingSettings, TokenMasks

_NO_LOGPROBS = -1
_INT32, _FLOAT32, _UINT64 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.uint64)
_NOT_SENT = -1


@dataclass(frozen=True, slots=True)
class _Field:
    """An array of a frame; columns: of a two-dimensional one, 0 for any number of them."""

    name: str
    dtype: np.dtype[Any] = _INT32
    columns: int = 1


# 64-bit ones first: every array then lies on a multiple of its element.
_SETTINGS = (
    _Field("seeds", _UINT64),
    _Field("temperature", _FLOAT32),
    _Field("top_k"),
    _Field("top_p", _FLOAT32),
    _Field("min_p", _FLOAT32),
    _Field("presence", _FLOAT32),
    _Field("frequency", _FLOAT32),
    _Field("repetition", _FLOAT32),
)
_SAMPLING = (
    _Field("token_index"),
    _Field("bias_rows"),
    _Field("bias_ids"),
    _Field("bias_values", _FLOAT32),
    _Field("penalty_rows"),
    _Field("penalty_ids"),
    _Field("penalty_counts"),
)
_BATCH = (
    _Field("slots"),
    _Field("q_lens"),
    _Field("seq_lens"),
    _Field("token_ids"),
    _Field("positions"),
    _Field("block_updates", columns=3),
    _Field("block_copies", columns=2),
    _Field("sample_index"),
    _Field("sample_slots"),
)
_MASKS = (_Field("rows"), _Field("words", columns=0))
_FIELDS = (*_SETTINGS, *_SAMPLING, *_BATCH, *_MASKS)
_HEADER = struct.Struct(f"<q{len(_FIELDS)}q")


@dataclass(frozen=True, slots=True)
class KnownMasks:
    """TokenMasks whose words are there."""

    rows: Int32
    known: Int32

    def words(self) -> Int32:
        """As they were given."""
        return self.known


class BatchEncoder:
    """Leaves out the settings that the frame before had."""

    def __init__(self) -> None:
        self._sent: SamplingSettings | None = None

    def encode(self, batch: Batch) -> bytes:
        """One frame. `batch.sampling.masks` is asked for its words, if any."""
        sampling, masks = batch.sampling, batch.sampling.masks
        is_new = sampling.settings is not self._sent
        arrays = [
            *_arrays(_SETTINGS, sampling.settings if is_new else None),
            *_arrays(_SAMPLING, sampling),
            *_arrays(_BATCH, batch),
            None if masks is None else masks.rows,
            None if masks is None else masks.words(),
        ]
        self._sent = sampling.settings
        sizes = [_NOT_SENT if array is None else array.size for array in arrays]
        parts = [
            np.ascontiguousarray(array, field.dtype).tobytes()
            for field, array in zip(_FIELDS, arrays, strict=True)
            if array is not None
        ]
        return b"".join([_HEADER.pack(batch.step, *sizes), *parts])


def _arrays(fields: tuple[_Field, ...], holder: object) -> list[NDArray[Any] | None]:
    if holder is None:
        return [None] * len(fields)
    return [getattr(holder, field.name) for field in fields]


class BatchDecoder:
    """Reads what one BatchEncoder wrote, frame after frame."""

    def __init__(self) -> None:
        self._settings: SamplingSettings | None = None

    def decode(self, frame: bytes) -> Batch:
        """The batch on the frame's own memory. Equal settings are the same object again."""
        step, *sizes = _HEADER.unpack_from(frame)
        found: dict[str, NDArray[Any]] = {}
        offset = _HEADER.size
        names = [*(f.name for f in _FIELDS[: -len(_MASKS)]), "mask_rows", "mask_words"]
        for name, field, size in zip(names, _FIELDS, sizes, strict=True):
            if size == _NOT_SENT:
                continue
            array = np.frombuffer(frame, field.dtype, size, offset)
            found[name] = array if field.columns == 1 else array.reshape(-1, field.columns or size)
            offset += array.nbytes
        arrays: dict[str, Any] = {field.name: found[field.name] for field in _BATCH}
        return Batch(step=step, sampling=self._sampling(found), **arrays)

    def _sampling(self, found: dict[str, NDArray[Any]]) -> SamplingBatch:
        if _SETTINGS[0].name in found:
            self._settings = SamplingSettings(
                num_logprobs=np.full(len(found["seeds"]), _NO_LOGPROBS, np.int32),
                **{field.name: found[field.name] for field in _SETTINGS},
            )
        assert self._settings is not None, "the first frame has settings"
        masks: TokenMasks | None = None
        if "mask_rows" in found:
            rows = found["mask_rows"]
            masks = KnownMasks(rows, found["mask_words"].reshape(len(rows), -1))
        return SamplingBatch(
            settings=self._settings,
            masks=masks,
            **{field.name: found[field.name] for field in _SAMPLING},
        )
