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
class Parameter:
    """One tensor of the checkpoint. `shape` is as stored; transposed ones are [inputs, outputs].

    family: whose rows first_row.. (of its weight or bias) it fills, if any
    """

    name: str
    shape: tuple[int, ...]
    parallel: Parallel
    load: Callable[[LogicalWeight], None]
    is_transposed: bool = False
    family: WeightFamily | None = None
    first_row: int = 0


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
        self.add(
            Parameter(name=name, shape=(size,), parallel=Parallel.REPLICATED, load=vector.load)
        )
        return vector

    def table(self, shape: tuple[int, ...], make: Callable[[], NDArray[np.float32]]) -> Table:
        """A table of `shape` that `make` computes when memory is allocated."""
        table = Table(shape, make, self._store)
        self._allocated.append(table)
        return table

    def own(self, family: WeightFamily) -> None:
        """Count and allocate this family's memory with the weights."""
        self._allocated.append(family)

    def vocab(self, name: str, family: VocabFamily) -> None:
        """The checkpoint tensor that fills a whole vocabulary family."""
        problem = family.problem
        self.add(
            Parameter(
                name=name,
                shape=(problem.vocab_size, problem.hidden_size),
                parallel=Parallel.VOCAB,
                load=lambda weight: family.load(0, weight),
                family=family,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A run of a linear family's output rows that one checkpoint tensor (and its bias) fills."""

    name: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayout:
    """How checkpoint tensors make up one linear family, first row to last."""

    rows: tuple[Rows, ...]
    parallel: Parallel
    is_transposed: bool = False


def add_linear(parameters: Parameters, family: LinearFamily, layout: LinearLayout) -> None:
    """Declare `<name>.weight` (and `<name>.bias`) of every row run of a linear family."""
    parameters.own(family)
    first_row = 0
    for rows in layout.rows:
        shape = (rows.num_rows, family.problem.in_features)
        parameters.add(
            Parameter(
                name=f"{rows.name}.weight",
                shape=shape[::-1] if layout.is_transposed else shape,
                parallel=layout.parallel,
                load=_rows_loader(family, first_row),
                is_transposed=layout.is_transposed,
                family=family,
                first_row=first_row,
            )
        )
        if family.problem.has_bias:
            parameters.add(
                Parameter(
                    name=f"{rows.name}.bias",
                    shape=(rows.num_rows,),
                    parallel=layout.parallel,
                    load=_bias_loader(family, first_row),
                    family=family,
                    first_row=first_row,
                )
            )
        first_row += rows.num_rows
    assert first_row == family.problem.out_features, "the row runs must cover the family"


def _rows_loader(family: LinearFamily, first_row: int) -> Callable[[LogicalWeight], None]:
    return lambda weight: family.load(first_row, weight)


def _bias_loader(family: LinearFamily, first_row: int) -> Callable[[LogicalWeight], None]:
    return lambda weight: family.load_bias(first_row, weight.values)
