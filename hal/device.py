"""What a device is (`Capabilities`, data) and what it does (`Device`, one file per vendor)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from hal.collective import Collective
from hal.dtypes import DType
from hal.tensor import Tensor

if TYPE_CHECKING:  # numpy would double the time of every --help
    from numpy.typing import NDArray

DEVICE_INTERFACE_VERSION = 3


class Feature(StrEnum):
    """The closed list of facts a predicate may ask for."""

    FP16_MMA = "fp16_mma"
    BF16_MMA = "bf16_mma"
    INT8_MMA = "int8_mma"
    FP8_OCP_MMA = "fp8_ocp_mma"
    FP8_FNUZ_MMA = "fp8_fnuz_mma"
    GRAPHS = "graphs"
    P2P = "p2p"
    AVX2 = "avx2"
    AVX_VNNI = "avx_vnni"
    AVX512 = "avx512"
    AVX512_BF16 = "avx512_bf16"
    AVX512_VNNI = "avx512_vnni"
    AVX512_VBMI = "avx512_vbmi"
    AMX_BF16 = "amx_bf16"
    AMX_INT8 = "amx_int8"
    NEON = "neon"
    DOTPROD = "dotprod"


class MemoryKind(StrEnum):
    """Where a device's memory lives."""

    DEDICATED = "dedicated"
    UNIFIED = "unified"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory facts in bytes. `available_bytes` is what may still be taken at probe time:
    free memory on dedicated cards, min(MemAvailable, cgroup left) on unified and host memory."""

    kind: MemoryKind
    total_bytes: int
    available_bytes: int
    cgroup_limit_bytes: int | None = None
    numa_nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Launch limits; 0 where the idea does not apply (a CPU has no grid)."""

    shared_memory_bytes: int = 0
    max_threads_per_block: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Version strings for bug reports; empty = not there."""

    driver: str = ""
    runtime: str = ""
    compiler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one device is. Filled once by probe(); never asked again in the hot path.

    links: how it is joined to the host and to others, in words
    """

    vendor: str
    name: str
    arch: str
    memory: Memory
    compute_units: int
    simd_width: int
    features: frozenset[Feature]
    is_accelerator: bool
    limits: Limits = Limits()
    versions: Versions = Versions()
    links: tuple[str, ...] = ()

    def feature_names(self) -> str:
        """The features as a readable list, for reasons."""
        return ", ".join(sorted(self.features)) or "none of the known features"


class Event(ABC):
    """A point in the device's work that can be waited for."""

    @abstractmethod
    def wait(self) -> None: ...


class Device(ABC):
    """Actions on one device. Every method has a caller in `engine/` and a contract test.

    Tensors are the device's own kind behind the `Tensor` protocol; host data is numpy.
    Allocation failures raise DeviceOutOfMemory with the sizes.

    posed: what the device stands for, if it is another one: kernels and memory are then planned
        for that one as well, and what runs is chosen by `capabilities`
    """

    interface_version: ClassVar[int] = DEVICE_INTERFACE_VERSION
    capabilities: Capabilities
    posed: Capabilities | None = None

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that may still be allocated now."""

    @abstractmethod
    def allocated_bytes(self) -> int:
        """Bytes allocated through `empty` and still alive."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: DType) -> Tensor:
        """Uninitialised memory."""

    @abstractmethod
    def empty_host(self, shape: Sequence[int], dtype: DType) -> Tensor:
        """Uninitialised memory of the host, as the device copies from and to it fastest."""

    @abstractmethod
    def upload(self, host: NDArray[Any], into: Tensor | None = None) -> Tensor:
        """A device tensor with a copy of `host`, or its very memory where the device is the host;
        the caller must not change `host` before the next synchronize().

        into: a contiguous tensor of the same shape and type that gets the copy and is returned
        """

    @abstractmethod
    def download(self, x: Tensor) -> NDArray[Any]:
        """A host copy; waits for the work that makes `x`."""

    @abstractmethod
    def record(self) -> Event:
        """Mark this point of the submitted work."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all submitted work."""

    @abstractmethod
    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record the work that `run` submits, without doing it, and return what does it.

        A replay works on the addresses that `run` used: their tensors must outlive it, and are
        what it reads and writes. Raises UnsupportedError without graphs, and where `run` does what
        cannot be recorded: allocates, uploads, downloads, or computes in another way.
        """

    @abstractmethod
    def collective(self) -> Collective:
        """The collective of this device's group."""
