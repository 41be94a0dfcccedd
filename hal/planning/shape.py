"""A model as planning sees it: how many weights of which kind, and what each layer remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hal.dtypes import DType
from hal.engine.layers.parameters import Parallel
from hal.kv import KVKind


class Role(StrEnum):
    """What a weight is for: it decides what quantisation and a token's work touch.

    linear: multiplied with every token; expert: with the tokens routed to it; head: once for each
    sampled row; embedding: looked up; other: vectors, routers and towers, never quantised here
    """

    LINEAR = "linear"
    EXPERT = "expert"
    HEAD = "head"
    EMBEDDING = "embedding"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """`count` equal matrices [rows, columns], outputs by inputs; a vector has one column.

    heads: what a column cut may not split, where that is fewer than rows (key and value heads)
    active: how many of them one token is multiplied with
    """

    name: str
    rows: int
    columns: int
    role: Role
    parallel: Parallel = Parallel.REPLICATED
    count: int = 1
    heads: int = 0
    active: int | None = None

    @property
    def num_elements(self) -> int:
        return self.rows * self.columns * self.count

    @property
    def active_elements(self) -> int:
        """Of these, what one token is multiplied with."""
        if self.role is Role.EMBEDDING:
            return 0
        return self.rows * self.columns * (self.count if self.active is None else self.active)

    def rank_rows(self, tp: int) -> int:
        if self.parallel not in (Parallel.COLUMN, Parallel.VOCAB):
            return self.rows
        if self.heads:  # a rank keeps whole heads; with fewer heads than ranks, copies of them
            return -(-self.heads // tp) * (self.rows // self.heads)
        return -(-self.rows // tp)

    def rank_columns(self, tp: int) -> int:
        return -(-self.columns // tp) if self.parallel is Parallel.ROW else self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayers:
    """`count` layers that remember the same: key_dim + value_dim elements a head and token.

    LATENT is one shared vector, so every rank keeps all of it. CROSS holds the encoder's tokens.
    """

    kind: KVKind
    count: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    def rank_heads(self, tp: int) -> int:
        return -(-self.num_kv_heads // tp)

    def elements_per_token(self, tp: int = 1) -> int:
        """Of one layer on one rank."""
        return self.rank_heads(tp) * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What config.json says, as far as bytes and arithmetic go.

    dense_widths: widths of the step buffers that ranks cut (projections, MLP), per token;
        whole_widths: of others beside the hidden states (a row for each expert of a token)
    attention_dim: query elements times 2 that each remembered token is multiplied with, one layer
    prefill_attention_dim: the same while a prompt is read, where that takes less; 0: the same
    guess: how the shape was guessed, "" where the architecture is known
    """

    model_type: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    cut_sizes: tuple[int, ...]
    max_position_embeddings: int
    dtype: DType
    weights: tuple[Weight, ...]
    kv: tuple[KVLayers, ...]
    dense_widths: tuple[int, ...]
    attention_dim: int
    whole_widths: tuple[int, ...] = ()
    prefill_attention_dim: int = 0
    rotary_dim: int = 0
    has_dtype: bool = True
    guess: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def num_parameters(self) -> int:
        return sum(weight.num_elements for weight in self.weights)

    @property
    def active_parameters(self) -> int:
        """What one token is multiplied with."""
        return sum(weight.active_elements for weight in self.weights)

    @property
    def num_kv_layers(self) -> int:
        return sum(layers.count for layers in self.kv)
