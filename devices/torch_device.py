"""What every device whose tensors are torch tensors shares: making, moving and counting them."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hal.collective import Collective, SingleRank
from hal.device import Capabilities, Device
from hal.devices.host import available_bytes
from hal.dtypes import DType
from hal.errors import DeviceOutOfMemory, UnsupportedError
from hal.memory import format_bytes
from hal.tensor import Tensor


class LiveAllocations:
    """Counts the bytes of storages that are still alive, views included."""

    def __init__(self) -> None:
        # A finalizer may run in any thread, even within add(): dict steps are atomic, `-=` is not.
        self._bytes_by_number: dict[int, int] = {}
        self._numbers = itertools.count()

    def add(self, tensor: torch.Tensor) -> None:
        """Count `tensor` until its storage dies; views keep the storage, not the tensor."""
        storage = tensor.untyped_storage()
        number = next(self._numbers)
        self._bytes_by_number[number] = storage.nbytes()
        finalizer = weakref.finalize(storage, self._bytes_by_number.pop, number)
        finalizer.atexit = False

    def total_bytes(self) -> int:
        return sum(list(self._bytes_by_number.values()))


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's type of the same name; raises UnsupportedError where torch has none (int4)."""
    found = getattr(torch, dtype.label, None)
    if not isinstance(found, torch.dtype) or dtype is DType.INT4:
        raise UnsupportedError(
            f"torch {torch.__version__} has no tensors of {dtype}; store it packed as uint8"
        )
    return found


def host_tensor(host: NDArray[Any]) -> torch.Tensor:
    """A torch tensor over the very memory of `host`; a copy only if its strides are negative.

    Read-only memory (a mapped checkpoint, a received message) is shared as well: ops read what
    was uploaded and never write to it.
    """
    if not host.flags.c_contiguous:
        host = np.ascontiguousarray(host)
    if not host.flags.writeable:
        host = _as_writeable(host)
    return torch.from_numpy(host)


class _Writeable:
    """Shows an array's memory without the read-only mark, which torch warns about."""

    def __init__(self, host: NDArray[Any]) -> None:
        self._host = host
        address, _ = host.__array_interface__["data"]
        self.__array_interface__ = {**host.__array_interface__, "data": (address, False)}


def _as_writeable(host: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(_Writeable(host))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch means "no room": not each of its allocators has a type of its own for it."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "out of memory" in text or "can't allocate memory" in text


class TorchDevice(Device):
    """A device of torch tensors; subclasses name the torch device and know its free memory."""

    def __init__(self, capabilities: Capabilities, torch_device: str) -> None:
        self.capabilities = capabilities
        self._torch_device = torch.device(torch_device)
        self._live = LiveAllocations()

    def allocated_bytes(self) -> int:
        return self._live.total_bytes()

    def empty(self, shape: Sequence[int], dtype: DType) -> Tensor:
        wanted = dtype.num_bytes(math.prod(shape))
        with self._typed_out_of_memory(wanted, f"a tensor {list(shape)} of {dtype}"):
            tensor = torch.empty(tuple(shape), dtype=torch_dtype(dtype), device=self._torch_device)
        self._live.add(tensor)
        return tensor

    def empty_host(self, shape: Sequence[int], dtype: DType) -> Tensor:
        """Page-locked for a card; not among allocated_bytes(), which are the card's."""
        wanted, left = dtype.num_bytes(math.prod(shape)), available_bytes()
        is_locked = self._torch_device.type != "cpu"
        try:
            if wanted <= left:
                return torch.empty(tuple(shape), dtype=torch_dtype(dtype), pin_memory=is_locked)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        raise DeviceOutOfMemory(
            f"the host has no room for a tensor {list(shape)} of {dtype}: {format_bytes(wanted)} "
            f"wanted, {format_bytes(left)} available. Lower --swap-space"
        )

    def download(self, x: Tensor) -> NDArray[Any]:
        """numpy has no bfloat16 and no fp8: those come back as float32, which holds every value."""
        assert isinstance(x, torch.Tensor), f"{type(x).__name__} is not a tensor of this device"
        host = x.detach().to("cpu")
        if host.dtype is torch.bfloat16 or host.dtype.itemsize == 1 and host.is_floating_point():
            host = host.to(torch.float32)
        return host.numpy()

    def collective(self) -> Collective:
        return SingleRank()

    def copy(self, host: NDArray[Any], into: Tensor) -> Tensor:
        """What `upload` does where it is given a tensor."""
        assert isinstance(into, torch.Tensor), f"{type(into).__name__} is not of this device"
        into.copy_(host_tensor(host), non_blocking=True)
        return into

    @contextmanager
    def _typed_out_of_memory(self, num_bytes: int, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(num_bytes, what) from error

    def _out_of_memory(self, num_bytes: int, what: str) -> DeviceOutOfMemory:
        return DeviceOutOfMemory(
            f"{self.capabilities.name} has no room for {what}: "
            f"{format_bytes(num_bytes)} wanted, {format_bytes(self.free_bytes())} free, "
            f"{format_bytes(self.allocated_bytes())} held here. "
            "Lower --memory, --max-model-len or --max-num-seqs, or choose a smaller model"
        )
