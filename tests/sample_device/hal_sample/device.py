"""The card itself: memory, copies, order of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from hal.device import Capabilities, Event
from hal.devices.torch_device import TorchDevice, host_tensor
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.tensor import Tensor


class DoneEvent(Event):
    """This card has finished whatever a call asked for when the call returns."""

    def wait(self) -> None:
        return None


class SampleDevice(TorchDevice):
    """Its tensors are torch tensors, so TorchDevice makes, counts and downloads them; a card with
    tensors of its own derives from hal.device.Device and writes those methods too."""

    # The version this file was written for, as a number: the constant would claim every version.
    interface_version = 3

    def __init__(self, capabilities: Capabilities) -> None:
        super().__init__(capabilities, "cpu")

    def free_bytes(self) -> int:
        return self.capabilities.memory.total_bytes - self.allocated_bytes()

    def empty(self, shape: Sequence[int], dtype: DType) -> Tensor:
        wanted = dtype.num_bytes(math.prod(shape))
        if wanted > self.free_bytes():
            raise self._out_of_memory(wanted, f"a tensor {list(shape)} of {dtype}")
        return super().empty(shape, dtype)

    def upload(self, host: NDArray[Any], into: Tensor | None = None) -> Tensor:
        return host_tensor(host).clone() if into is None else self.copy(host, into)

    def record(self) -> Event:
        return DoneEvent()

    def synchronize(self) -> None:
        return None

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        raise UnsupportedError(f"{self.capabilities.name} has no graph capture")
