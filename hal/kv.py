"""What one layer keeps per token, and layers that keep the same thing grouped together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hal.dtypes import DType


class KVKind(StrEnum):
    """What a layer remembers. Only FULL and SLIDING have kernels today."""

    FULL = "full"
    SLIDING = "sliding"
    LATENT = "latent"
    STATE = "state"
    CROSS = "cross"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """One layer's cache: keys and values of num_kv_heads heads; window in tokens, SLIDING only."""

    kind: KVKind
    num_kv_heads: int
    head_dim: int
    dtype: DType
    window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """Key and value bytes of one token in one layer: 2 x kv heads x head_dim x element."""
        return self.dtype.num_bytes(2 * self.num_kv_heads * self.head_dim)


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers with equal specs: they share block tables, so one block id means all of them."""

    spec: KVSpec
    layers: tuple[int, ...]

    def bytes_per_block(self, block_size: int) -> int:
        return self.spec.bytes_per_token * block_size * len(self.layers)


def peak_blocks(num_tokens: int, block_size: int, window: int | None, chunk: int) -> int:
    """The most blocks one sequence holds at once while it grows to `num_tokens` by chunks.

    Behind a window blocks are given back, so that only the window, a chunk and the block that
    both cut are ever held.
    """
    whole = -(-num_tokens // block_size)
    if window is None:
        return whole
    return min(whole, -(-(window - 1 + chunk) // block_size) + 1)


def group_layers(specs: Sequence[KVSpec]) -> tuple[KVGroup, ...]:
    """Groups of layers with equal specs, in order of first appearance."""
    layers: dict[KVSpec, list[int]] = {}
    for layer, spec in enumerate(specs):
        layers.setdefault(spec, []).append(layer)
    return tuple(KVGroup(spec, tuple(members)) for spec, members in layers.items())
