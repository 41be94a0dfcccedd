"""A device without hardware: the whole engine on reference kernels, in host memory.

It poses as any profile, and fails on command the way real devices fail.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from numpy.typing import NDArray

from hal.device import Capabilities, Event, Memory
from hal.devices import host
from hal.devices.cpu import CpuDevice
from hal.devices.null_spec import LOADING, Fault, FaultAt, NullSpec
from hal.dtypes import DType
from hal.errors import UnsupportedError
from hal.tensor import Tensor


class NullDevice(CpuDevice):
    """The reference machine that other devices are compared with.

    The first synchronize() ends loading. From then on a step begins with its first upload and ends
    with record(), or with the error that it raised.
    """

    def __init__(self, spec: NullSpec | None = None) -> None:
        spec = spec or NullSpec()
        self.posed = None if spec.profile is None else spec.profile.capabilities()
        super().__init__(_capabilities(self.posed))
        self._faults = list(spec.faults)
        self._step = LOADING
        self._is_full = False
        self._poison = _Poison()

    def free_bytes(self) -> int:
        """What the host can spare, at most what the posed device would have left."""
        if self._is_full:
            return 0
        left = self.capabilities.memory.total_bytes - self.allocated_bytes()
        return max(0, min(super().free_bytes(), left))

    def empty(self, shape: Sequence[int], dtype: DType) -> Tensor:
        what = f"a tensor {list(shape)} of {dtype}"
        self._use(dtype.num_bytes(torch.Size(shape).numel()), what)
        tensor = super().empty(shape, dtype)
        self._poison.consider(tensor)
        return tensor

    def upload(self, host: NDArray[Any], into: Tensor | None = None) -> Tensor:
        self._use(host.nbytes, f"an upload {list(host.shape)} of {host.dtype}")
        return super().upload(host, into)

    def record(self) -> Event:
        self._end_step()
        return super().record()

    def synchronize(self) -> None:
        self._step = max(self._step, LOADING + 1)

    def _use(self, num_bytes: int, what: str) -> None:
        """Inject the faults of this step, each once, before the first thing that the step does."""
        due = [fault for fault in self._faults if fault.step == self._step]
        try:
            for fault in due:
                self._faults.remove(fault)
                self._inject(fault, num_bytes, what)
        except BaseException:
            self._end_step()
            raise

    def _end_step(self) -> None:
        self._poison.undo()
        if self._step != LOADING:
            self._step += 1

    def _inject(self, fault: FaultAt, num_bytes: int, what: str) -> None:
        match fault.fault:
            case Fault.OOM:
                self._fill_up(num_bytes, f"{what} (injected by {fault})")
            case Fault.NAN:
                self._poison.apply(fault)
            case Fault.HANG:
                threading.Event().wait()
            case Fault.CRASH:
                print(f"null device: aborting, injected by {fault}", file=sys.stderr, flush=True)
                os.abort()

    def _fill_up(self, num_bytes: int, what: str) -> NoReturn:
        self._is_full = True
        try:
            raise self._out_of_memory(num_bytes, what)
        finally:
            self._is_full = False


class _Poison:
    """NaN in one weight vector for one step, so that real kernels carry it to every row.

    The first vector of floats that a model allocates is a norm's weight, which every token passes.
    """

    def __init__(self) -> None:
        self._vector: weakref.ref[torch.Tensor] | None = None
        self._values: torch.Tensor | None = None

    def consider(self, tensor: Tensor) -> None:
        assert isinstance(tensor, torch.Tensor)
        if self._vector is None and tensor.ndim == 1 and tensor.is_floating_point():
            self._vector = weakref.ref(tensor)

    def apply(self, fault: FaultAt) -> None:
        vector = self._alive()
        if vector is None:
            raise UnsupportedError(f"{fault}: nothing with a weight vector was loaded here")
        self._values = vector.clone()
        vector.fill_(float("nan"))

    def undo(self) -> None:
        vector = self._alive()
        if vector is not None and self._values is not None:
            vector.copy_(self._values)
        self._values = None

    def _alive(self) -> torch.Tensor | None:
        return None if self._vector is None else self._vector()


def _capabilities(posed: Capabilities | None) -> Capabilities:
    """The null device's own: reference kernels are selected; its memory is never the larger one."""
    own = host.null_capabilities()
    if posed is None:
        return own
    return replace(own, memory=_smaller(own.memory, posed.memory))


def _smaller(host_memory: Memory, posed: Memory) -> Memory:
    return replace(
        host_memory,
        total_bytes=min(host_memory.total_bytes, posed.total_bytes),
        available_bytes=min(host_memory.available_bytes, posed.available_bytes),
    )
