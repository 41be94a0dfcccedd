"""Sampling once more, in Python integers and float64, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hal.conformance.oracle import Float64, ranked

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How one row is sampled; seed is unsigned."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    token_index: int = 0


def philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """Four random words, as published (Salmon et al. 2011, section 3.3 and table 2)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (right >> 32) ^ c[1] ^ k[0],
            right & _MASK,
            (left >> 32) ^ c[3] ^ k[1],
            left & _MASK,
        ]
        k = [(k[0] + 0x9E3779B9) & _MASK, (k[1] + 0xBB67AE85) & _MASK]
    return c


def noise(settings: RowSettings, token_id: int) -> float:
    """The Gumbel noise of one id."""
    counter = [token_id // 4, settings.token_index, 0, 0]
    key = [settings.seed & _MASK, settings.seed >> 32]
    word = philox4x32_10(counter, key)[token_id % 4]
    return -math.log(-math.log((word + 0.5) / 2.0**32))


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
    scores = {i: (row[i] - row.max()) / settings.temperature + noise(settings, i) for i in kept}
    return max(kept, key=lambda i: scores[i])
