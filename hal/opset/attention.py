"""Attention over a paged KV cache. An attention family owns the cache's layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hal.binding import Binder
from hal.dtypes import DType
from hal.kv import KV_FORMATS
from hal.select import declare
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The scalars of one attention. window: a token sees itself and window - 1 before it.

    kv_dtype: of a cache of codes, as hal.kv.KVSpec defines them; None: the problem's dtype.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    kv_dtype: DType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem:
    """Causal self-attention of num_heads query heads over num_kv_heads cached heads (GQA)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    block_size: int
    spec: AttentionSpec

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def kv_dtype(self) -> DType:
        """What the cache keeps an element as."""
        return self.spec.kv_dtype or self.dtype

    @property
    def holds_codes(self) -> bool:
        """Whether the cache keeps codes and scales."""
        return self.kv_dtype in KV_FORMATS.values()

    @property
    def kv_storage(self) -> DType:
        """What the cache is allocated in: bytes, where codes and scales share it."""
        return DType.INT8 if self.holds_codes else self.kv_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeProblem:
    """Rotary embedding of the first rotary_dim elements of each query and key head.

    has_norm: query and key heads are RMS-normalised before (QK-norm). rotary_dim 0: no rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    has_norm: bool
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMeta:
    """One step's geometry: host arrays for planning, device copies for kernels.

    S sequences, T tokens, B = most blocks of any sequence this step.
    cu_seqlens_q [S + 1], seq_lens [S] (context after this step), block_table [S, B] (entries
    behind a sequence's last block are unspecified) int32; slot_mapping [T] int64 =
    block id * block_size + offset.
    """

    cu_seqlens_q: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_table: NDArray[np.int32]
    slot_mapping: NDArray[np.int64]
    cu_seqlens_q_device: Tensor
    seq_lens_device: Tensor
    block_table_device: Tensor
    slot_mapping_device: Tensor

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens)

    @property
    def num_tokens(self) -> int:
        return len(self.slot_mapping)


class AttentionFamily(ABC):
    """Kernels that share one KV layout. One object serves all layers with an equal problem.

    `plan` is called once per step before any layer runs; tensors of a layer's cache are passed in.
    """

    legal_block_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)

    def __init__(self, problem: AttentionProblem, binder: Binder) -> None:
        self.problem = problem

    @property
    @abstractmethod
    def kv_layout(self) -> str:
        """The layout in words of its dimensions, for reports."""

    @abstractmethod
    def kv_shape(self, num_blocks: int) -> tuple[int, ...]:
        """Shape of one layer's cache in problem.kv_storage, scales included."""

    @abstractmethod
    def plan(self, meta: AttentionMeta) -> None:
        """Prepare this step (work lists, gathers) for `attend`."""

    @abstractmethod
    def write_kv(self, qkv: Tensor, kv: Tensor) -> None:
        """Store keys and values of qkv [T, qkv_width] (rotated) at the planned slots of `kv`.

        As codes where it holds those.
        """

    @abstractmethod
    def attend(self, qkv: Tensor, kv: Tensor, out: Tensor) -> None:
        """Attention of the planned step; out [T, num_heads * head_dim].

        Reads the queries of qkv [T, qkv_width], and keys and values from `kv` only. Codes of a
        quantised cache are exact; nothing else is rounded further than its dtype asks.
        Accumulates in float32. Source: online softmax (Milakov and Gimelshein 2018).
        """

    @abstractmethod
    def copy_blocks(self, kv: Tensor, out: Tensor, pairs: NDArray[np.int32]) -> None:
        """out[destination] = kv[source] for each row (source, destination) of pairs [C, 2].

        out: `kv` itself, or blocks of the same layout in `Device.empty_host` memory; or the other
        way round. No destination is the source of another. Between two memories the copies may
        still run when this returns.
        """


@declare(AttentionProblem)
def attention(problem: AttentionProblem, binder: Binder) -> AttentionFamily:
    """A bound AttentionFamily: causal attention of new tokens against the paged K/V cache."""
    raise AssertionError("a declaration is never called")


@declare(RopeProblem)
def qk_norm_rope(
    qkv: Tensor,
    problem: Any,
    positions: Tensor,
    cos_sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> None:
    """Normalise (if weights are given) and rotate the query and key heads of qkv in place.

    qkv [T, (num_heads + 2 * num_kv_heads) * head_dim]; problem: its RopeProblem
    positions [T] int32; cos_sin [max_positions, rotary_dim] float32: cosines, then sines
    q_weight, k_weight [head_dim]
    Rotation pairs element i with i + rotary_dim / 2. Computed in float32, rounded once at the end.

    Source: RoFormer (Su et al. 2021); QK-norm (Henry et al. 2020).
    """
