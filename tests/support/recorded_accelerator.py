"""A stand-in for the `torch.cuda` module: cards of chosen properties, calls written down.

The properties have the names and forms that torch gives them; no card was asked. Tensors lie in
host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hal.devices.torch_accelerator import Graph

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCard:
    """What `torch.cuda.get_device_properties` returns."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int
    is_integrated: int = 0
    gcnArchName: str = ""
    warp_size: int = 32
    shared_memory_per_block: int = 49152
    uuid: object = "00000000-0000-0000-0000-000000000000"


H100 = RecordedCard(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * GIB,
    gcnArchName="NVIDIA H100 80GB HBM3",
)
# ROCm's torch fills major and minor with the arch's digits: nothing may take them for sm_94.
MI300X = RecordedCard(
    name="AMD Instinct MI300X",
    major=9,
    minor=4,
    multi_processor_count=304,
    total_memory=192 * GIB,
    gcnArchName="gfx942:sramecc+:xnack-",
    warp_size=64,
    shared_memory_per_block=65536,
)


class RecordedEvent:
    """`torch.cuda.Event`."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def record(self) -> None:
        self._calls.append("event.record")

    def synchronize(self) -> None:
        self._calls.append("event.synchronize")


class RecordedGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def replay(self) -> None:
        self._calls.append("graph.replay")


@dataclass
class RecordedAccelerator:
    """The `torch.cuda` namespace; `calls` lists what was asked of it, in order."""

    cards: tuple[RecordedCard, ...] = (H100,)
    archs: tuple[str, ...] = ("sm_80", "sm_90", "compute_90")
    free_bytes: int = 60 * GIB
    reserved_bytes: int = 0
    used_bytes: int = 0
    init_error: Exception | None = None
    memory_error: RuntimeError | None = None
    calls: list[str] = field(default_factory=list)

    def init(self) -> None:
        if self.init_error is not None:
            raise self.init_error

    def device_count(self) -> int:
        return len(self.cards)

    def get_device_properties(self, device: int) -> RecordedCard:
        return self.cards[device]

    def get_arch_list(self) -> list[str]:
        return list(self.archs)

    def mem_get_info(self, device: int) -> tuple[int, int]:
        if self.memory_error is not None:
            raise self.memory_error
        return self.free_bytes, self.cards[device].total_memory

    def memory_reserved(self, device: int) -> int:
        return self.reserved_bytes

    def memory_allocated(self, device: int) -> int:
        return self.used_bytes

    def set_device(self, device: int) -> None:
        self.calls.append(f"set_device {device}")

    def synchronize(self, device: int) -> None:
        self.calls.append(f"synchronize {device}")

    def Event(self) -> RecordedEvent:
        return RecordedEvent(self.calls)

    def CUDAGraph(self) -> RecordedGraph:
        return RecordedGraph(self.calls)

    @contextmanager
    def graph(self, cuda_graph: Graph) -> Iterator[None]:
        self.calls.append("capture begins")
        yield
        self.calls.append("capture ends")
