"""The bytes that a family made of a checkpoint, for whoever keeps them for the next start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredForm:
    """The memory of an allocated family, and what its bytes mean.

    layout: what shapes them beside the tensors that are loaded and the code that does it: format,
        sizes, order of rows. Forms of equal layout are interchangeable.
    parts: the memory itself, writable, as bytes: everything that `load` and `load_bias` fill
    """

    layout: str
    parts: tuple[memoryview, ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)
