"""What the engine may do with a tensor: look at its shape, view it, split it, slice its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self


class Tensor(Protocol):
    """Device memory with a shape. Anything beyond these members is an op.

    Slices are leading-dimension only (`x[:num_tokens]`) and share memory with the original.
    """

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> object: ...

    def view(self, *shape: int) -> Self: ...

    def split(self, split_size: list[int], dim: int = 0) -> Sequence[Self]: ...

    def __getitem__(self, rows: slice, /) -> Self: ...
