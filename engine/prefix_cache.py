"""Which full blocks can be shared: a map from content to block, and an LRU of the idle ones."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

DIGEST_BYTES = 16


def root_digest(salt: bytes) -> bytes:
    """The parent of a first block; another salt (adapter, tenant) never shares with this one."""
    return blake2b(salt, digest_size=DIGEST_BYTES, person=b"hal-prefix-root").digest()


def block_digest(parent: bytes, token_bytes: bytes) -> bytes:
    """128 bits that stand for a full block's tokens (int32 bytes) and for all tokens before it."""
    return blake2b(parent + token_bytes, digest_size=DIGEST_BYTES).digest()


class PrefixCache:
    """Blocks by digest. An idle block (no sequence holds it) can be evicted, oldest first."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def find(self, digest: bytes) -> int | None:
        return self._block_of.get(digest)

    def holds(self, block: int) -> bool:
        return block in self._digest_of

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def insert(self, digest: bytes, block: int) -> None:
        """Make a block findable; of two blocks with equal content the first one stays."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def park(self, block: int) -> None:
        """The last sequence let go of a held block: it becomes the newest idle one."""
        self._idle[block] = None

    def unpark(self, block: int) -> None:
        """A sequence took an idle block again."""
        del self._idle[block]

    def evict(self) -> int:
        """Forget and return the block that has been idle longest."""
        block, _ = self._idle.popitem(last=False)
        self.forget(block)
        return block

    def forget(self, block: int) -> None:
        """Nobody finds this block any more (sequences that hold it keep it)."""
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]

    def check(self) -> None:
        """Raise AssertionError unless both maps agree and every idle block is findable."""
        assert {block: digest for digest, block in self._block_of.items()} == self._digest_of
        assert self._idle.keys() <= self._digest_of.keys(), "an idle block that nobody can find"
