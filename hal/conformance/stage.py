"""Where a case runs: seeded random values on the host in float64 and on the device in a dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hal.binding import Arena, Binder
from hal.device import Device
from hal.dtypes import DType
from hal.opset import store
from hal.opset.indexing import GatherProblem
from hal.select import Kernel, Selector
from hal.tensor import Tensor
from hal.weights import LogicalWeight

Float64 = NDArray[np.float64]
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Value:
    """The same numbers twice: as the oracle reads them and as the kernel does."""

    host: Float64
    device: Tensor


class Stage:
    """One case's inputs and outputs on one device. Equal seeds make equal inputs."""

    def __init__(self, device: Device, seed: int) -> None:
        self.device = device
        self.binder = Binder(Selector(device.capabilities), Arena(MAX_TOKENS), device)
        self.rng = np.random.default_rng(seed)

    def bind(self, kernel: Kernel, problem: Any) -> Any:
        """The kernel as its callers hold it, intermediate results allocated."""
        bound = kernel.bind(problem, self.binder)
        self.binder.arena.allocate(self.device)
        return bound

    def normal(self, shape: tuple[int, ...], dtype: DType, scale: float = 1.0) -> Value:
        """Fresh random numbers, as `dtype` holds them."""
        return self.place(self.rng.standard_normal(shape) * scale, dtype)

    def place(self, values: Float64, dtype: DType) -> Value:
        """`values` rounded to `dtype`."""
        rounded = torch.from_numpy(values).to(host_dtype(dtype))
        return Value(rounded.double().numpy(), self._upload(rounded, dtype))

    def poisoned(self, shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Memory full of NaN: whatever is not written, or read too early, shows. In codes every
        bit is set, which is NaN as well to whoever reads a scale there."""
        return self._upload(poison(shape, dtype), dtype)

    def indices(self, values: NDArray[Any]) -> Tensor:
        """Integers on the device, in the dtype given."""
        return self.device.upload(values.copy())

    def read(self, x: Tensor) -> Float64:
        """What the device holds, in float64."""
        self.device.synchronize()
        return np.array(self.device.download(x), dtype=np.float64)

    def weight(self, shape: tuple[int, ...], dtype: DType, scale: float) -> torch.Tensor:
        """A checkpoint tensor in host memory: every second column of a wider one, so strided."""
        wide = self.rng.standard_normal((*shape[:-1], 2 * shape[-1])) * scale
        return torch.from_numpy(wide).to(host_dtype(dtype))[..., ::2]

    def _upload(self, values: torch.Tensor, dtype: DType) -> Tensor:
        x = self.device.empty(tuple(values.shape), dtype)
        problem = GatherProblem(width=values.shape[-1], dtype=dtype)
        self.binder.bind(store, problem)(values, x)
        return x


def poison(shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
    """What `Stage.poisoned` puts on the device."""
    is_codes = dtype is DType.INT8
    return torch.full(shape, -1 if is_codes else float("nan"), dtype=host_dtype(dtype))


def host_dtype(dtype: DType) -> torch.dtype:
    """torch's name of a dtype."""
    found = getattr(torch, dtype.label)
    assert isinstance(found, torch.dtype)
    return found


def logical(values: torch.Tensor, dtype: DType) -> LogicalWeight:
    """A checkpoint tensor without scales, as readers hand it over."""
    return LogicalWeight(values=values, dtype=dtype)
