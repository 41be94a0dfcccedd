"""From selections to callables: the step arena, and the binder that layers are built with."""

from __future__ import annotations

from typing import Any

from hal.device import Device
from hal.dtypes import DType
from hal.select import Op, Selection, Selector
from hal.tensor import Tensor


class Buffer:
    """A named piece of the step arena; `rows(n)` is its first n rows once the arena exists."""

    def __init__(self, shape: tuple[int, ...], dtype: DType) -> None:
        self.shape = shape
        self.dtype = dtype
        self._tensor: Tensor | None = None
        self._rows: Tensor | None = None
        self._num_rows = -1

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return self.dtype.num_bytes(count)

    def place(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._rows, self._num_rows = None, -1

    def rows(self, num_rows: int) -> Tensor:
        """The same object until another number of rows is asked for: a steady step makes none."""
        if self._rows is None or num_rows != self._num_rows:
            assert self._tensor is not None, "the step arena is not allocated yet"
            self._rows, self._num_rows = self._tensor[:num_rows], num_rows
        return self._rows


class Arena:
    """The step's intermediate results: declared while binding, summed by the plan, made once.

    Equal (name, width, dtype) declarations share one buffer of `max_tokens` rows: layers run one
    after the other, so each may overwrite what the layer before left.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._buffers: dict[tuple[str, tuple[int, ...], DType], Buffer] = {}

    def buffer(
        self, name: str, width: int | tuple[int, ...], dtype: DType, rows: int | None = None
    ) -> Buffer:
        """Declare [rows or max_tokens, *width]; returns the shared handle."""
        tail = (width,) if isinstance(width, int) else width
        shape = (self.max_tokens if rows is None else rows, *tail)
        return self._buffers.setdefault((name, shape, dtype), Buffer(shape, dtype))

    @property
    def num_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self._buffers.values())

    def allocate(self, device: Device) -> None:
        for buffer in self._buffers.values():
            buffer.place(device.empty(buffer.shape, buffer.dtype))


class Binder:
    """Binds sites to kernels on a device: what composite kernels and layers build themselves with.

    device is None while planning for a device that is absent: nothing is allocated then.
    """

    def __init__(self, selector: Selector, arena: Arena, device: Device | None) -> None:
        self.selector = selector
        self.arena = arena
        self._device = device
        self._shared: dict[tuple[str, Any], Any] = {}
        self._sites: dict[tuple[str, Any], Selection] = {}

    @property
    def device(self) -> Device:
        assert self._device is not None, "a plan for an absent device allocates nothing"
        return self._device

    def bind(self, op: Op, problem: Any) -> Any:
        """The chosen kernel of this site, ready to call."""
        selection = self.selector.select(op, problem)
        self._sites.setdefault((op.name, problem), selection)
        return selection.kernel.bind(problem, self)

    @property
    def selections(self) -> tuple[Selection, ...]:
        """Of the sites that were bound here: a selector may serve several binders."""
        return tuple(self._sites.values())

    def shared(self, op: Op, problem: Any) -> Any:
        """Like `bind`, but equal problems get the same object: for families without weights."""
        key = (op.name, problem)
        if key not in self._shared:
            self._shared[key] = self.bind(op, problem)
        return self._shared[key]
