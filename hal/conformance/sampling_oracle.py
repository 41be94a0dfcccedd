"""Sampling once more, in unsigned integers and float64, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.conformance.oracle import Float64, ranked

Uint64 = NDArray[np.uint64]
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How one row is sampled; seed is unsigned."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    token_index: int = 0


def philox4x32_10(counter: Uint64, key: Uint64) -> Uint64:
    """Words [N, 4] of counters [N, 4] and one key [2], as published (Salmon et al. 2011)."""
    c = [counter[:, i] for i in range(4)]
    k = [key[0], key[1]]
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (right >> _HALF) ^ c[1] ^ k[0],
            right & _MASK,
            (left >> _HALF) ^ c[3] ^ k[1],
            left & _MASK,
        ]
        k = [(k[0] + np.uint64(0x9E3779B9)) & _MASK, (k[1] + np.uint64(0xBB67AE85)) & _MASK]
    return np.stack(c, axis=1)


def noise(settings: RowSettings, ids: list[int]) -> Float64:
    """The Gumbel noise of some ids."""
    counter = np.zeros((len(ids), 4), dtype=np.uint64)
    counter[:, 0] = np.array(ids) // 4
    counter[:, 1] = settings.token_index
    seed = np.uint64(settings.seed)
    words = philox4x32_10(counter, np.array([seed & _MASK, seed >> _HALF]))
    word = words[np.arange(len(ids)), np.array(ids) % 4]
    return np.asarray(-np.log(-np.log((word.astype(np.float64) + 0.5) / 2.0**32)))


def kept_ids(row: Float64, settings: RowSettings) -> list[int]:
    """What top-k, then min-p, then top-p leave of a row, likeliest first."""
    order = [int(i) for i in ranked(row)]
    weights = {i: math.exp((row[i] - row[order[0]]) / settings.temperature) for i in order}
    if 0 < settings.top_k < len(order):
        edge = row[order[settings.top_k - 1]]
        order = [i for i in order if row[i] >= edge]
    total = sum(weights[i] for i in order)
    kept: list[int] = []
    mass = 0.0
    for i in order:
        if mass >= settings.top_p and kept and settings.top_p < 1:
            break
        mass += weights[i] / total
        if weights[i] >= settings.min_p:
            kept.append(i)
    return kept


def sample_row(row: Float64, settings: RowSettings) -> int:
    """The token of one row of logits, -1 where none can be told."""
    if np.isnan(row).any() or not np.isfinite(row.max()):
        return -1
    if settings.temperature == 0:
        return int(np.argmax(row))
    kept = kept_ids(row, settings)
    # Relative to the maximum, so that no temperature drowns the noise between equal values.
    scores = (row[kept] - row.max()) / settings.temperature + noise(settings, kept)
    return kept[int(np.argmax(scores))]
