"""Philox4x32-10 in 64-bit integers, and Gumbel noise made of it; the same bits on every device.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_LOW_32 = 0xFFFFFFFF


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Random words [..., 4] of counter [..., 4] and key [..., 2]; all int64 holding uint32."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_NUM_ROUNDS):
        # The int64 product wraps; its 64 bits are those of the unsigned product.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> 32 & _LOW_32) ^ c1 ^ k0,
            second & _LOW_32,
            (first >> 32 & _LOW_32) ^ c3 ^ k1,
            first & _LOW_32,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    return torch.stack([c0, c1, c2, c3], dim=-1)


def gumbel_noise(seeds: torch.Tensor, token_index: torch.Tensor, num_ids: int) -> torch.Tensor:
    """Noise [N, num_ids] float64 of ids 0.. ; seeds [N] int64, token_index [N] int32."""
    groups = torch.arange(-(-num_ids // 4), device=seeds.device).expand(len(seeds), -1)
    return gumbel_of(_words(seeds, token_index, groups).flatten(1)[:, :num_ids])


def gumbel_noise_at(
    seeds: torch.Tensor, token_index: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """The same for chosen ids [N, K] int64."""
    words = _words(seeds, token_index, ids // 4)
    return gumbel_of(words.gather(2, (ids % 4).unsqueeze(2)).squeeze(2))


def _words(seeds: torch.Tensor, token_index: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """[N, G, 4] random words of counter (group, token index, 0, 0); groups [N, G]."""
    key = torch.stack([seeds & _LOW_32, seeds >> 32 & _LOW_32], dim=-1).unsqueeze(1)
    second = token_index.long().unsqueeze(1).expand_as(groups)
    zero = torch.zeros_like(groups)
    return philox4x32(torch.stack([groups, second, zero, zero], dim=-1), key)


def gumbel_of(words: torch.Tensor) -> torch.Tensor:
    """Noise float64 of random words."""
    # In float64 u is never 0 or 1, so the noise is finite.
    u = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u))
