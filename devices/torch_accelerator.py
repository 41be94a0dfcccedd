"""A device behind `torch.cuda`, which is also the name ROCm's torch answers to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from numpy.typing import NDArray

from hal.device import Capabilities, Event, MemoryKind
from hal.devices import host
from hal.devices.torch_device import TorchDevice, host_tensor
from hal.errors import UnsupportedError
from hal.tensor import Tensor


class StreamEvent(Protocol):
    """`torch.cuda.Event`."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


class Graph(Protocol):
    """`torch.cuda.CUDAGraph`."""

    def replay(self) -> None: ...


class AcceleratorApi(Protocol):
    """The part of the `torch.cuda` module that a running device needs; tests pass a recording."""

    # Written as torch writes them: classes of the module, called as functions.
    def Event(self) -> StreamEvent: ...
    def CUDAGraph(self) -> Graph: ...
    def graph(self, cuda_graph: Graph) -> AbstractContextManager[object]: ...
    def mem_get_info(self, device: int) -> tuple[int, int]: ...
    def memory_reserved(self, device: int) -> int: ...
    def memory_allocated(self, device: int) -> int: ...
    def set_device(self, device: int) -> None: ...
    def synchronize(self, device: int) -> None: ...


class AcceleratorEvent(Event):
    """A point in the current stream."""

    def __init__(self, event: StreamEvent) -> None:
        self._event = event
        event.record()

    def wait(self) -> None:
        self._event.synchronize()


class TorchAccelerator(TorchDevice):
    """Work goes to torch's current stream of card `index`, which becomes torch's current device."""

    def __init__(
        self,
        capabilities: Capabilities,
        index: int,
        api: AcceleratorApi | None = None,
        torch_device: str = "cuda",
    ) -> None:
        super().__init__(capabilities, f"{torch_device}:{index}")
        # A cast: torch's signatures name its own classes, which a recording does not have.
        self._api = cast("AcceleratorApi", torch.cuda) if api is None else api
        self._index = index
        self._api.set_device(index)

    def free_bytes(self) -> int:
        """What the driver has left and torch keeps unused; on unified memory, of what the host has.

        A driver of unified memory does not count page cache as free, and knows of no cgroup.
        """
        free, total = self._api.mem_get_info(self._index)
        if self.capabilities.memory.kind is MemoryKind.UNIFIED:
            free = min(total, host.available_bytes())
        kept = self._api.memory_reserved(self._index) - self._api.memory_allocated(self._index)
        return free + kept

    def upload(self, host: NDArray[Any], into: Tensor | None = None) -> Tensor:
        if into is not None:
            return self.copy(host, into)
        tensor = host_tensor(host)
        with self._typed_out_of_memory(
            host.nbytes, f"an upload {list(host.shape)} of {host.dtype}"
        ):
            return tensor.to(self._torch_device, non_blocking=True)

    def record(self) -> Event:
        return AcceleratorEvent(self._api.Event())

    def synchronize(self) -> None:
        self._api.synchronize(self._index)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """`run` must have run once before: what it compiles cannot be captured."""
        graph = self._api.CUDAGraph()
        try:
            with self._typed_out_of_memory(0, "a graph"), self._api.graph(graph):
                run()
        except RuntimeError as error:  # the stream's refusal: a host read, a synchronisation
            raise UnsupportedError(
                f"{self.capabilities.name} cannot capture this: {error}; run with --enforce-eager"
            ) from error
        return graph.replay
