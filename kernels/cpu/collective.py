"""The collective of ranks on one machine: memory that all of them map, summed by native code."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
import torch

from hal.collective import Collective
from hal.errors import RANK_LOST, EngineError
from hal.kernels.cpu import native
from hal.kernels.reference.tensors import as_torch
from hal.share import Share
from hal.tensor import Tensor


def create_region(size: int) -> int:
    """The descriptor of memory for a group of `size` ranks, zeroed, without a name to clean up."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("hal-ranks")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, native.load().Communicator.region_bytes(size))
    return descriptor


class SharedMemoryCollective(Collective):
    """Sums in float32 in the order of the ranks, rounded once: the same bits on all of them.

    descriptor: of create_region; it may be closed once this is made
    timeout_s: of one wait for another rank; behind it the group has failed
    """

    name = "shared-memory"

    def __init__(self, share: Share, descriptor: int, timeout_s: float) -> None:
        self._share = share
        self._timeout_s = timeout_s
        communicator = native.load().Communicator
        self._num_bytes: int = communicator.region_bytes(share.size)
        self._memory = mmap.mmap(descriptor, self._num_bytes)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._native = communicator(self._bytes.ctypes.data, share.rank, share.size, timeout_s)

    @property
    def rank(self) -> int:
        return self._share.rank

    @property
    def size(self) -> int:
        return self._share.size

    @property
    def num_bytes(self) -> int:
        return -(-self._num_bytes // self.size)

    def all_reduce(self, x: Tensor) -> None:
        values = as_torch(x)
        assert values.is_contiguous(), "ranks sum whole tensors"
        summed = values.float() if values.dtype is torch.float16 else values
        code = native.TORCH_CODES[summed.dtype]
        self._native.all_reduce(summed.data_ptr(), summed.numel(), code)
        if summed is not values:
            values.copy_(summed)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        own, whole = as_torch(x), as_torch(out)
        assert own.is_contiguous() and whole.is_contiguous() and own.dtype is whole.dtype
        rows, columns = whole.shape
        self._native.all_gather(
            own.data_ptr(), rows, columns, whole.element_size(), whole.data_ptr()
        )

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        values = as_torch(x)
        assert values.is_contiguous(), "ranks send whole tensors"
        self._native.broadcast(values.data_ptr(), values.nbytes, root)

    def limit_waits(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._native.limit_waits(timeout_s)

    def check(self) -> None:
        late = self._native.failure()
        if late is None:
            return
        why = (
            f"rank {late} did not arrive within {self._timeout_s:g} s"
            if late >= 0
            else "a rank has left the group"
        )
        raise EngineError(f"rank {self.rank} of {self.size}: {why}", code=RANK_LOST)

    def abort(self) -> None:
        self._native.abort()
