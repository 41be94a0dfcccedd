"""128 bits that stand for a block's tokens and for all tokens before it, made for many at once.

Four lanes of the multilinear hash: salt + sum(key[i] * (token[i] + 1)) modulo 2^64, of which the
upper 32 bits count. For tokens that were chosen without knowing the keys, two different prefixes
collide with probability 2^-32 in a lane, independently in each. A sum is chained by adding to it.

Source: Lemire and Kaser, Strongly universal string hashing is fast (2014), section 3.
"""

from __future__ import annotations

from functools import lru_cache, partial
from hashlib import blake2b, shake_256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hal.engine.batch import Index, Int32

Lanes = NDArray[np.uint64]

NUM_LANES = 4
KEY_BYTES = 32

_STATE = np.dtype("<u8")
_HALF = np.dtype("<u4")
_KEY = np.dtype("V16")
_UINT64 = np.dtype(np.uint64)
_ONE = np.array(1, np.uint64)  # a scalar is converted anew in every sum


class PrefixKeys(NamedTuple):
    """One prompt's full blocks: keys[i] stands for blocks 0..i, states[i] [NUM_LANES] chains on.

    root: the state before the first block, [NUM_LANES]
    """

    root: Lanes
    states: Lanes
    keys: list[bytes]

    def state_after(self, num_blocks: int) -> Lanes:
        state: Lanes = self.states[num_blocks - 1] if num_blocks else self.root
        return state


def keys_of(states: Lanes) -> list[bytes]:
    """The 16 bytes of each state, [N, NUM_LANES]."""
    upper = np.ascontiguousarray(states, _STATE).view(_HALF)[:, 1::2].tobytes()
    keys: list[bytes] = np.frombuffer(upper, _KEY).tolist()
    return keys


class PrefixHasher:
    """Multipliers by position, drawn from a secret key: who does not have it finds no collision.

    A prompt is short and is looked up alone, so what counts is the number of array operations.
    """

    def __init__(self, secret: bytes, block_size: int) -> None:
        self._secret = secret
        self._block_size = block_size
        self._multipliers: Lanes = np.empty((NUM_LANES, 0), np.uint64)
        self._root = lru_cache(maxsize=1024)(partial(_root, secret))

    def root(self, salt: bytes) -> Lanes:
        """The state of an empty prefix; another salt (adapter, tenant) never shares with this."""
        return self._root(salt)

    def prefix(self, tokens: Int32, salt: bytes) -> PrefixKeys:
        """Keys of all full blocks of a prompt."""
        num_blocks, root = len(tokens) // self._block_size, self._root(salt)
        if not num_blocks:
            return PrefixKeys(root, np.empty((0, NUM_LANES), np.uint64), [])
        self._reserve(num_blocks)
        num_tokens = num_blocks * self._block_size
        running = _terms(tokens[:num_tokens]) * self._multipliers[:, :num_tokens]
        first = running[:, 0]
        first += root
        np.add.accumulate(running, 1, out=running)
        states = np.ascontiguousarray(running[:, self._block_size - 1 :: self._block_size].T)
        return PrefixKeys(root, states, keys_of(states))

    def sums(self, blocks: Int32, indices: Index) -> Lanes:
        """What each block adds to the state before it: tokens [N, block_size], [N] positions."""
        self._reserve(int(indices.max()) + 1)
        multipliers = self._multipliers.reshape(NUM_LANES, -1, self._block_size)[:, indices]
        sums: Lanes = (_terms(blocks) * multipliers).sum(2).T
        return sums

    def _reserve(self, num_blocks: int) -> None:
        num_tokens, present = num_blocks * self._block_size, self._multipliers.shape[1]
        if num_tokens <= present:
            return
        num_tokens = max(num_tokens, 2 * present)
        stream = shake_256(self._secret).digest(num_tokens * NUM_LANES * 8)
        by_token = np.frombuffer(stream, np.uint64).reshape(num_tokens, NUM_LANES)
        self._multipliers = np.ascontiguousarray(by_token.T)


def _root(secret: bytes, salt: bytes) -> Lanes:
    digest = blake2b(salt, digest_size=8 * NUM_LANES, key=secret).digest()
    return np.frombuffer(digest, np.uint64)


def _terms(tokens: Int32) -> Lanes:
    """What is multiplied: a token 0 must count, or a prefix would equal itself with zeros behind
    it."""
    terms: Lanes = tokens.astype(_UINT64)
    terms += _ONE
    return terms
