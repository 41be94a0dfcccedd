"""The CPU: host memory, torch CPU tensors, work that is done when the call returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from hal.device import Capabilities, Event
from hal.devices import host
from hal.devices.torch_device import TorchDevice, host_tensor
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.tensor import Tensor

# Below this no reading of /proc/meminfo: a step's small tensors cannot exhaust a machine.
_CHECKED_BYTES = 1 << 20


class FinishedEvent(Event):
    """A point in work that was done before it could be recorded."""

    def wait(self) -> None:
        return None


class CpuDevice(TorchDevice):
    """Runs in the caller's thread; nothing is ever in flight."""

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        super().__init__(capabilities or host.cpu_capabilities(), "cpu")
        self._anonymous_bytes_at_start = host.anonymous_bytes()

    def free_bytes(self) -> int:
        """min(MemAvailable, cgroup left), less what is allocated here but not touched yet.

        Linux promises memory without taking it: a pool that nobody has written to does not show
        in MemAvailable. What of our tensors is not resident is still owed.
        """
        resident = max(0, host.anonymous_bytes() - self._anonymous_bytes_at_start)
        owed = max(0, self.allocated_bytes() - resident)
        return max(0, host.available_bytes() - owed)

    def empty(self, shape: Sequence[int], dtype: DType) -> Tensor:
        num_bytes = dtype.num_bytes(math.prod(shape))
        if num_bytes >= _CHECKED_BYTES and num_bytes > self.free_bytes():
            raise self._out_of_memory(num_bytes, f"a tensor {list(shape)} of {dtype}")
        return super().empty(shape, dtype)

    def upload(self, host: NDArray[Any]) -> Tensor:
        return host_tensor(host)

    def record(self) -> Event:
        return FinishedEvent()

    def synchronize(self) -> None:
        return None

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        raise UnsupportedError(
            f"{self.capabilities.name} has no graph capture; run with --enforce-eager"
        )
