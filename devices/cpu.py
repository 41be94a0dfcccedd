"""The CPU: host memory, torch CPU tensors, work that is done when the call returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from hal.device import Capabilities, Event, Feature
from hal.devices import host
from hal.devices.torch_device import TorchDevice, host_tensor
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.host_recording import host_recorder
from hal.tensor import Tensor

# Below this no reading of /proc/meminfo: a step's small tensors cannot exhaust a machine.
_CHECKED_BYTES = 1 << 20


class FinishedEvent(Event):
    """A point in work that was done before it could be recorded."""

    def wait(self) -> None:
        return None


class _NoTorch(TorchDispatchMode):
    """While it is entered, an op of torch that computes or allocates is refused, by its name."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not func.is_view:
            raise UnsupportedError(f"torch's {func} within a capture: a replay would not repeat it")
        return func(*args, **(kwargs or {}))


class CpuDevice(TorchDevice):
    """Runs in the caller's thread; nothing is ever in flight."""

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        super().__init__(capabilities or host.cpu_capabilities(), "cpu")
        self._anonymous_bytes_at_start = host.anonymous_bytes()
        self._is_capturing = False

    def free_bytes(self) -> int:
        """min(MemAvailable, cgroup left), less what is allocated here but not touched yet.

        Linux promises memory without taking it: a pool that nobody has written to does not show
        in MemAvailable. What of our tensors is not resident is still owed.
        """
        resident = max(0, host.anonymous_bytes() - self._anonymous_bytes_at_start)
        owed = max(0, self.allocated_bytes() - resident)
        return max(0, host.available_bytes() - owed)

    def empty(self, shape: Sequence[int], dtype: DType) -> Tensor:
        self._refuse_in_capture("allocation")
        num_bytes = dtype.num_bytes(math.prod(shape))
        if num_bytes >= _CHECKED_BYTES and num_bytes > self.free_bytes():
            raise self._out_of_memory(num_bytes, f"a tensor {list(shape)} of {dtype}")
        return super().empty(shape, dtype)

    def empty_host(self, shape: Sequence[int], dtype: DType) -> Tensor:
        """The device's memory is the host's."""
        return self.empty(shape, dtype)

    def upload(self, host: NDArray[Any], into: Tensor | None = None) -> Tensor:
        self._refuse_in_capture("upload")
        if into is None:
            return host_tensor(host)
        assert isinstance(into, torch.Tensor), f"{type(into).__name__} is not of this device"
        np.copyto(into.numpy(), host)  # a third of the time of torch's copy of a few words
        return into

    def download(self, x: Tensor) -> NDArray[Any]:
        self._refuse_in_capture("download")
        return super().download(x)

    def record(self) -> Event:
        return FinishedEvent()

    def synchronize(self) -> None:
        return None

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        recorder = host_recorder()
        if Feature.GRAPHS not in self.capabilities.features or recorder is None:
            why = "no graph capture" if recorder else "no kernels registered that it could record"
            raise UnsupportedError(f"{self.capabilities.name} has {why}; run with --enforce-eager")
        self._is_capturing = True
        try:
            with _NoTorch():  # type: ignore[no-untyped-call]  # torch's base has no types
                return recorder(run)
        finally:
            self._is_capturing = False

    def _refuse_in_capture(self, what: str) -> None:
        if self._is_capturing:
            raise UnsupportedError(f"{what} within a capture: a replay would not repeat it")
