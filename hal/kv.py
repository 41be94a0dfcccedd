"""What one layer keeps per token, and layers that keep the same thing grouped together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hal.dtypes import DType

# What --kv-cache-dtype takes beside "auto" and the name of the model's own dtype.
KV_FORMATS = {"int8": DType.INT8, "fp8": DType.FLOAT8_E4M3FN}
KV_SCALE_BYTES = DType.BFLOAT16.num_bytes(1)


class KVKind(StrEnum):
    """What a layer remembers. Only FULL and SLIDING have kernels today."""

    FULL = "full"
    SLIDING = "sliding"
    LATENT = "latent"
    STATE = "state"
    CROSS = "cross"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """One layer's cache: keys and values of num_kv_heads heads; window in tokens, SLIDING only.

    dtype INT8: symmetric codes. A token has one scale for each head's keys (rotated, as they would
    be stored) and one for its values: scale = max|x| / 127 rounded to bfloat16, code =
    x * (1 / scale), both in float32, rounded to nearest even and held to -127 .. 127.
    dtype FLOAT8_E4M3FN: the same with 448 for 127, and the OCP e4m3 nearest to x * (1 / scale) held
    to -448 .. 448; also on devices whose own fp8 is FNUZ.

    A largest magnitude of up to hal.weights.SMALLEST counts as zero. One that is not finite makes
    the scale NaN, so that it shows in every result that reads the token and fails that request
    alone.
    """

    kind: KVKind
    num_kv_heads: int
    head_dim: int
    dtype: DType
    window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """Key and value bytes of one token in one layer: 2 x kv heads x head_dim x element, and
        a scale in bfloat16 beside each head's codes."""
        scale = KV_SCALE_BYTES if self.dtype in KV_FORMATS.values() else 0
        return 2 * self.num_kv_heads * (self.dtype.num_bytes(self.head_dim) + scale)


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
