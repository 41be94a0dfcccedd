"""What a profile says of one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hal.device import Capabilities, Feature, Limits, Memory, MemoryKind
from hal.dtypes import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How several of these devices talk: bytes_per_s is of one device, one direction, all lanes.

    max_devices: how many share this link domain.
    """

    kind: str
    bytes_per_s: float
    max_devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One device as its vendor documents it; `sources` says where each number was read.

    aliases: other names that users type
    device: what `--device` calls its kind ("cuda"); "" where hal has no such kind
    peak_flops: dense matrix operations per second by element type; a type that is left out has
        no matrix instructions
    """

    name: str
    title: str
    vendor: str
    arch: str
    device: str
    memory_kind: MemoryKind
    memory_bytes: int
    bandwidth_bytes_per_s: float
    compute_units: int
    simd_width: int
    shared_memory_bytes: int
    peak_flops: Mapping[DType, float]
    features: frozenset[Feature]
    links: tuple[Link, ...]
    sources: Mapping[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def is_accelerator(self) -> bool:
        return self.memory_kind is not MemoryKind.HOST

    def capabilities(self) -> Capabilities:
        """The idle device as a probe would report it, all of its memory available."""
        return Capabilities(
            vendor=self.vendor,
            name=self.title,
            arch=self.arch,
            memory=Memory(
                kind=self.memory_kind,
                total_bytes=self.memory_bytes,
                available_bytes=self.memory_bytes,
            ),
            compute_units=self.compute_units,
            simd_width=self.simd_width,
            features=self.features,
            is_accelerator=self.is_accelerator,
            limits=Limits(shared_memory_bytes=self.shared_memory_bytes, max_threads_per_block=1024)
            if self.is_accelerator
            else Limits(),
            links=tuple(
                f"{link.kind} {link.bytes_per_s / 1e9:g} GB/s each way, up to {link.max_devices}"
                for link in self.links
            ),
        )
