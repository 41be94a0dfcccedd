"""The generator against the known answers that its authors publish with Random123."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hal.conformance.sampling_oracle import RowSettings, noise, philox4x32_10
from hal.kernels.reference.philox import gumbel_noise, gumbel_noise_at, gumbel_of, philox4x32

# kat_vectors of Random123 1.14: philox4x32 10 rounds.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

Words = tuple[int, ...]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_reference_gives_the_known_answers(counter: Words, key: Words, words: Words) -> None:
    result = philox4x32(torch.tensor(counter), torch.tensor(key))
    assert tuple(result.tolist()) == words


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_oracle_gives_the_known_answers(counter: Words, key: Words, words: Words) -> None:
    result = philox4x32_10(np.array([counter], dtype=np.uint64), np.array(key, dtype=np.uint64))
    assert tuple(result[0].tolist()) == words


def test_noise_of_a_seed_with_its_highest_bit_set() -> None:
    """Seeds are unsigned; torch holds their bits in int64, where this one is negative."""
    seed, ids = 0xF00000000000000D, [0, 1, 2, 3, 4, 1001]
    seeds = torch.from_numpy(np.array([seed], dtype=np.uint64).view(np.int64))
    index = torch.tensor([5], dtype=torch.int32)
    every = gumbel_noise(seeds, index, 1002)
    expected = noise(RowSettings(seed=seed, token_index=5), ids)
    np.testing.assert_allclose(every[0, ids].numpy(), expected, rtol=1e-15)
    chosen = gumbel_noise_at(seeds, index, torch.tensor([ids]))
    assert torch.equal(chosen[0], every[0, ids])


def test_noise_is_finite_for_the_extreme_words() -> None:
    """Words 0 and 2^32 - 1 would give infinite noise if u were rounded to float32."""
    extremes = gumbel_of(torch.tensor([0, 0xFFFFFFFF]))
    assert torch.isfinite(extremes).all()
    assert extremes[1] > 22 > 0 > extremes[0]
