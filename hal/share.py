"""Which part of a size each rank of a tensor-parallel group has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """Of rank `rank` among `size` ranks."""

    rank: int = 0
    size: int = 1

    def of(self, total: int) -> range:
        """A run of `total`; where it does not divide, the first ranks have one more, so that no
        rank has more than rank 0."""
        least, extra = divmod(total, self.size)
        first = self.rank * least + min(self.rank, extra)
        return range(first, first + least + (self.rank < extra))

    def of_kv_heads(self, num_kv_heads: int) -> range:
        """A run of the key and value heads; where there are fewer than ranks, a copy of the one
        that this rank's query heads read."""
        if num_kv_heads >= self.size:
            return self.of(num_kv_heads)
        head = self.rank * num_kv_heads // self.size
        return range(head, head + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuttable:
    """What ranks cut of a model. widths: of MLPs and experts"""

    num_heads: int
    num_kv_heads: int
    widths: tuple[int, ...]

    def why_not(self, size: int) -> str | None:
        """What `size` ranks do not divide, None where they can share the model.

        Key and value heads are divided, or copied evenly where there are fewer than ranks.
        """
        if self.num_heads % size:
            return f"{size} does not divide {self.num_heads} attention heads"
        if self.num_kv_heads % size and size % self.num_kv_heads:
            return (
                f"{self.num_kv_heads} key/value heads can neither be divided nor copied evenly "
                f"over {size}"
            )
        for width in self.widths:
            if width % size:
                return f"{size} does not divide the MLP's width {width}"
        return None

    def legal_sizes(self, limit: int) -> tuple[int, ...]:
        """All from 1 to `limit`."""
        return tuple(size for size in range(1, limit + 1) if self.why_not(size) is None)
