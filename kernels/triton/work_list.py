"""What each program of a step's attention does: tiles of queries by ranges of keys.

A sequence of few new tokens is one tile, and its keys are cut where one program would read more
than its share, so that programs read equally many bytes. Others are cut by queries, longest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
NOT_SPLIT = -1
MIN_SHARE = 256  # keys: a partial result costs a few hundredths of reading these


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """decode_tokens, prefill_tokens: of a tile. keys: of a step through the cache.

    max_partials: tiles of partial results that there is room for
    """

    decode_tokens: int
    prefill_tokens: int
    keys: int
    max_partials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkList:
    """decode, prefill: rows (sequence, first token, first key, end key, partial or NOT_SPLIT).

    splits: rows (sequence, first token, first partial, end partial)
    """

    decode: Int32
    prefill: Int32
    splits: Int32


def make_work_list(
    cu_seqlens_q: Int32, seq_lens: Int32, window: int | None, tiling: Tiling
) -> WorkList:
    """Of one step, in the order of AttentionMeta's sequences."""
    q_lens = np.diff(cu_seqlens_q)
    first_keys = np.zeros_like(seq_lens)
    if window is not None:
        first_keys = np.maximum(0, seq_lens - q_lens + 1 - window)
    is_decode = q_lens <= tiling.decode_tokens
    seqs = np.flatnonzero(is_decode)
    first, end = first_keys[seqs], seq_lens[seqs]
    share = _share(first, end, tiling)
    prefill = [np.empty((0, 5), dtype=np.int64)] + [
        _prefill_items(seq, int(q_lens[seq]), int(seq_lens[seq]), window, tiling.prefill_tokens)
        for seq in np.flatnonzero(~is_decode).tolist()
    ]
    items = np.concatenate(prefill)
    longest_first = np.argsort(items[:, 2] - items[:, 3], kind="stable")
    return WorkList(
        decode=_decode_items(seqs, first, end, share, tiling),
        prefill=items[longest_first].astype(np.int32),
        splits=_splits(seqs, _counts(first, end, share, tiling)),
    )


def _decode_items(
    seqs: NDArray[np.intp], first: Int32, end: Int32, share: int, tiling: Tiling
) -> Int32:
    # A share begins at a multiple of the tile of keys: no tile is read twice.
    begin = first // tiling.keys * tiling.keys
    counts = _counts(first, end, share, tiling)
    owner = np.repeat(np.arange(len(seqs)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = begin[owner] + number * share
    is_split = counts[owner] > 1
    columns = (
        seqs[owner],
        np.zeros_like(owner),
        np.maximum(starts, first[owner]),
        np.minimum(starts + share, end[owner]),
        np.where(is_split, np.cumsum(is_split) - 1, NOT_SPLIT),
    )
    return np.stack(columns, axis=1).astype(np.int32)


def _counts(first: Int32, end: Int32, share: int, tiling: Tiling) -> NDArray[np.intp]:
    """Programs for each sequence."""
    return np.asarray(-(-(end - first // tiling.keys * tiling.keys) // share))


def _share(first: Int32, end: Int32, tiling: Tiling) -> int:
    """Keys of one program: as few as there is room for partial results, and worth a merge.

    A sequence that is cut has at most 2 n / share pieces of its n keys.
    """
    num_keys = int((end - first).sum()) + tiling.keys * len(first)
    needed = -(-2 * num_keys // tiling.max_partials)
    return max(MIN_SHARE, -(-needed // tiling.keys) * tiling.keys)


def _splits(seqs: NDArray[np.intp], counts: NDArray[np.intp]) -> Int32:
    """Of the sequences that were cut, where their partial results are."""
    is_split = counts > 1
    pieces = counts[is_split]
    ends = np.cumsum(pieces)
    columns = (seqs[is_split], np.zeros_like(pieces), ends - pieces, ends)
    return np.stack(columns, axis=1).astype(np.int32)


def _prefill_items(
    seq: int, q_len: int, seq_len: int, window: int | None, tokens: int
) -> NDArray[np.int64]:
    """Tiles of `tokens` queries, each with all the keys that any of them sees."""
    first_token = np.arange(0, q_len, tokens)
    before = seq_len - q_len
    first_key = np.zeros_like(first_token)
    if window is not None:
        first_key = np.maximum(0, before + first_token + 1 - window)
    end_key = before + np.minimum(first_token + tokens, q_len)
    same = np.ones_like(first_token)
    return np.stack([seq * same, first_token, first_key, end_key, NOT_SPLIT * same], axis=1)
