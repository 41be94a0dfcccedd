"""A model's parameters: name, shape, where the values go, and how ranks would cut them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hal.device import Device
from hal.dtypes import DType
from hal.opset.linear import LinearFamily
from hal.opset.moe import GroupedLinearFamily
from hal.opset.vocab import VocabFamily
from hal.tensor import Tensor
from hal.weights import LogicalWeight

# What owns the layout of a weight.
WeightFamily = LinearFamily | VocabFamily | GroupedLinearFamily


class Parallel(StrEnum):
    """How tensor-parallel ranks cut a parameter; a group of one keeps it whole."""

    COLUMN = "column"
    ROW = "row"
    VOCAB = "vocab"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What this rank reads of a tensor, as [outputs, inputs], and where it goes. None: all."""

    load: Callable[[LogicalWeight], None]
    rows: range | None = None
    columns: range | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One tensor of the checkpoint. `shape` is as stored; transposed ones are [inputs, outputs].

    parts: none for a tensor that only other ranks keep
    family: whose rows first_row.. (of its weight or bias) it fills, if any
    """

    name: str
    shape: tuple[int, ...]
    parallel: Parallel
    parts: tuple[Part, ...]
    is_transposed: bool = False
    family: WeightFamily | None = None
    first_row: int = 0

    @property
    def num_elements(self) -> int:
        """That this rank reads."""
        rows, *others = reversed(self.shape) if self.is_transposed else self.shape
        inner = math.prod(others)
        return sum(
            (rows if part.rows is None else len(part.rows))
            * (inner if part.columns is None else len(part.columns))
            for part in self.parts
        )


class Allocated(Protocol):
    """Anything that takes device memory for weights."""

    @property
    def num_bytes(self) -> int: ...

    def allocate(self, device: Device) -> None: ...


Store = Callable[[Tensor, Tensor], None]


class Vector:
    """A small per-layer tensor, such as a norm's weight."""

    def __init__(self, size: int, dtype: DType, store: Store) -> None:
        self.size = size
        self.dtype = dtype
        self._store = store
        self._tensor: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return self.dtype.num_bytes(self.size)

    @property
    def tensor(self) -> Tensor:
        assert self._tensor is not None, "weights are not allocated yet"
        return self._tensor

    def allocate(self, device: Device) -> None:
        self._tensor = device.empty((self.size,), self.dtype)

    def load(self, weight: LogicalWeight) -> None:
        self._store(weight.values, self.tensor)


class Table:
    """A float32 table computed on the host at load, such as rotary cosines and sines."""

    def __init__(
        self, shape: tuple[int, ...], make: Callable[[], NDArray[np.float32]], store: Store
    ) -> None:
        self._shape = shape
        self._make = make
        self._store = store
        self._tensor: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return DType.FLOAT32.num_bytes(math.prod(self._shape))

    @property
    def tensor(self) -> Tensor:
        assert self._tensor is not None, "weights are not allocated yet"
        return self._tensor

    def allocate(self, device: Device) -> None:
        values = self._make()
        assert values.shape == self._shape, f"a table {values.shape}, declared {self._shape}"
        self._tensor = device.empty(self._shape, DType.FLOAT32)
        self._store(device.upload(values), self._tensor)


class Parameters:
    """Every parameter of a model, in the order of its layers."""

    def __init__(self, dtype: DType, store: Store) -> None:
        self._dtype = dtype
        self._store = store
        self._by_name: dict[str, Parameter] = {}
        self._unsettled: list[tuple[Sequence[Parameter], ...]] = []
        self._allocated: list[Allocated] = []

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Parameter:
        return self._by_name[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Expected checkpoint tensors and their shapes."""
        return {parameter.name: parameter.shape for parameter in self}

    @property
    def num_bytes(self) -> int:
        """Device bytes of all weights and tables, before any is allocated."""
        return sum(item.num_bytes for item in self._allocated)

    def allocate(self, device: Device) -> None:
        for item in self._allocated:
            item.allocate(device)

    def add(self, parameter: Parameter) -> None:
        assert parameter.name not in self._by_name, f"{parameter.name} is declared twice"
        self._by_name[parameter.name] = parameter

    def either(self, *layouts: Sequence[Parameter]) -> None:
        """Parameters that checkpoints have in one of several layouts, the usual one first."""
        self._unsettled.append(layouts)

    def settle(self, has: Callable[[str], bool]) -> None:
        """Decide for the layouts of the checkpoint that `has` tensors by name."""
        for layouts in self._unsettled:
            found = (layout for layout in layouts if has(layout[0].name))
            for parameter in next(found, layouts[0]):
                self.add(parameter)
        self._unsettled.clear()

    def vector(self, name: str, size: int) -> Vector:
        """A replicated vector in the model's dtype."""
        vector = Vector(size, self._dtype, self._store)
        self._allocated.append(vector)
        parts = (Part(load=vector.load),)
        self.add(Parameter(name=name, shape=(size,), parallel=Parallel.REPLICATED, parts=parts))
        return vector

    def table(self, shape: tuple[int, ...], make: Callable[[], NDArray[np.float32]]) -> Table:
        """A table of `shape` that `make` computes when memory is allocated."""
        table = Table(shape, make, self._store)
        self._allocated.append(table)
        return table

    def own(self, memory: Allocated) -> None:
        """Count and allocate this family's memory with the weights."""
        self._allocated.append(memory)

    def vocab(self, name: str, family: VocabFamily, rows: Section) -> None:
        """The checkpoint tensor of which a vocabulary family keeps `rows`."""
        part = Part(load=lambda weight: family.load(0, weight), rows=rows.own_or_all)
        self.add(
            Parameter(
                name=name,
                shape=(rows.total, family.problem.hidden_size),
                parallel=Parallel.VOCAB,
                parts=(part,),
                family=family,
            )
        )


@dataclass(frozen=True, slots=True)
class Section:
    """`total` rows or columns of which this rank keeps `own`."""

    total: int
    own: range

    @classmethod
    def whole(cls, total: int) -> Section:
        """What every rank keeps all of."""
        return cls(total, range(total))

    @property
    def own_or_all(self) -> range | None:
        """None where it is all."""
        return None if len(self.own) == self.total else self.own


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Runs of a linear family's output rows that one checkpoint tensor (and its bias) fills."""

    name: str
    sections: tuple[Section, ...]

    @property
    def num_rows(self) -> int:
        """Of the tensor."""
        return sum(section.total for section in self.sections)

    def parts(self, first_row: int) -> Iterator[tuple[int, range | None]]:
        """The family's row and the tensor's rows of each run; None: all of the tensor."""
        offset = 0
        for section in self.sections:
            own = section.own
            rows = range(offset + own.start, offset + own.stop)
            yield first_row, None if len(own) == self.num_rows else rows
            first_row += len(own)
            offset += section.total


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayout:
    """How checkpoint tensors make up one linear family, first row to last.

    columns: that a rank keeps of a layer whose outputs are partial sums; None: of one whose
        outputs are the rank's own
    has_bias: whether this rank adds it: of partial sums only one may
    """

    rows: tuple[Rows, ...]
    columns: Section | None = None
    is_transposed: bool = False
    has_bias: bool = True

    @property
    def parallel(self) -> Parallel:
        return Parallel.COLUMN if self.columns is None else Parallel.ROW


class _ZeroBias:
    """The bias of a family whose layer's bias another rank adds."""

    num_bytes = 0  # the family counts it

    def __init__(self, family: LinearFamily) -> None:
        self._family = family

    def allocate(self, device: Device) -> None:
        zeros = np.zeros(self._family.problem.out_features, np.float32)
        self._family.load_bias(0, device.upload(zeros))


def add_linear(parameters: Parameters, family: LinearFamily, layout: LinearLayout) -> None:
    """Declare `<name>.weight` (and `<name>.bias`) of every tensor of a linear family."""
    parameters.own(family)
    if family.problem.has_bias and not layout.has_bias:
        parameters.own(_ZeroBias(family))
    first_row = 0
    for rows in layout.rows:
        parameters.add(_weight(family, layout, rows, first_row))
        if family.problem.has_bias:
            parameters.add(_bias(family, layout, rows, first_row))
        first_row += sum(len(section.own) for section in rows.sections)
    assert first_row == family.problem.out_features, "the row runs must cover the family"


def _weight(family: LinearFamily, layout: LinearLayout, rows: Rows, first_row: int) -> Parameter:
    columns = layout.columns
    shape = (rows.num_rows, family.problem.in_features if columns is None else columns.total)
    return Parameter(
        name=f"{rows.name}.weight",
        shape=shape[::-1] if layout.is_transposed else shape,
        parallel=layout.parallel,
        parts=tuple(
            Part(
                load=_rows_loader(family, row),
                rows=own,
                columns=None if columns is None else columns.own_or_all,
            )
            for row, own in rows.parts(first_row)
        ),
        is_transposed=layout.is_transposed,
        family=family,
        first_row=first_row,
    )


def _bias(family: LinearFamily, layout: LinearLayout, rows: Rows, first_row: int) -> Parameter:
    parts = rows.parts(first_row) if layout.has_bias else ()
    return Parameter(
        name=f"{rows.name}.bias",
        shape=(rows.num_rows,),
        parallel=layout.parallel,
        parts=tuple(Part(load=_bias_loader(family, row), rows=own) for row, own in parts),
        family=family,
        first_row=first_row,
    )


def _rows_loader(family: LinearFamily, first_row: int) -> Callable[[LogicalWeight], None]:
    return lambda weight: family.load(first_row, weight)


def _bias_loader(family: LinearFamily, first_row: int) -> Callable[[LogicalWeight], None]:
    return lambda weight: family.load_bias(first_row, weight.values)
