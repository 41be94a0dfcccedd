"""A `torch.cuda` whose graphs replay: torch's ops are recorded as a stream would record them.

Tensors lie in host memory. As with a card, a replay repeats the ops on the tensors of the capture
and nothing of the Python between them, and what waits for the device within a capture is refused.
Unlike a card, it also runs the ops while it records them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from recorded_accelerator import RecordedAccelerator, RecordedGraph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hal.devices.torch_accelerator import Graph

# Ops whose result the host waits for.
_WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item")


@dataclass(frozen=True, slots=True)
class Launch:
    """One op with the tensors it was captured on."""

    op: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: list[Any]

    def replay(self) -> None:
        made = tree_leaves(self.op(*self.arguments, **self.named))
        for old, new in zip(self.results, made, strict=True):
            if isinstance(old, torch.Tensor) and old is not new:
                old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self._launches = launches

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing ({name})")
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._launches.append(Launch(func, args, kwargs or {}, tree_leaves(result)))
        return result


class StreamGraph(RecordedGraph):
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(calls)
        self.launches: list[Launch] = []

    def replay(self) -> None:
        super().replay()
        for launch in self.launches:
            launch.replay()


class CapturingAccelerator(RecordedAccelerator):
    """The namespace with such graphs."""

    def CUDAGraph(self) -> StreamGraph:
        return StreamGraph(self.calls)

    @contextmanager
    def graph(self, cuda_graph: Graph) -> Iterator[None]:
        assert isinstance(cuda_graph, StreamGraph)
        with super().graph(cuda_graph), _Recorder(cuda_graph.launches):
            yield
