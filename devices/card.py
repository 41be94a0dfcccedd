"""A card's properties as torch reports them, for NVIDIA and AMD alike."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hal.device import Memory, MemoryKind
from hal.devices import host
from hal.devices.host import read_text


class CardProperties(Protocol):
    """What `torch.cuda.get_device_properties` returns, as far as it is read here.

    gcnArchName: "gfx942:sramecc+:xnack-" in ROCm's torch; the card's name elsewhere.
    uuid: an object whose text it is.
    """

    @property
    def name(self) -> str: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def multi_processor_count(self) -> int: ...
    @property
    def total_memory(self) -> int: ...
    @property
    def is_integrated(self) -> int: ...
    @property
    def gcnArchName(self) -> str: ...
    @property
    def uuid(self) -> object: ...
    @property
    def warp_size(self) -> int: ...
    @property
    def shared_memory_per_block(self) -> int: ...


def card_memory(card: CardProperties, free_bytes: int) -> Memory:
    """The card's own memory; an integrated part shares the host's, and its limits."""
    if not card.is_integrated:
        return Memory(
            kind=MemoryKind.DEDICATED, total_bytes=card.total_memory, available_bytes=free_bytes
        )
    shared = host.host_memory()
    return Memory(
        kind=MemoryKind.UNIFIED,
        total_bytes=card.total_memory,
        available_bytes=min(card.total_memory, shared.available_bytes),
        cgroup_limit_bytes=shared.cgroup_limit_bytes,
        numa_nodes=shared.numa_nodes,
    )


def card_identity(card: CardProperties) -> str:
    """What tells this card, or this part of a divided one, from others; "" if it has no UUID."""
    text = str(card.uuid)
    return f"UUID {text}" if text.strip("0-") else ""


def card_slot(card: CardProperties, root: Path = Path("/")) -> str:
    """Its PCI slot as the kernel writes it, "0000:41:00.0"; "" where nobody says.

    Only some releases of torch tell the slot; NVIDIA's driver lists it by UUID.
    """
    if hasattr(card, "pci_bus_id") and hasattr(card, "pci_device_id"):
        domain = getattr(card, "pci_domain_id", 0)
        return f"{domain:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0"
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        if str(card.uuid) in read_text(folder / "information"):
            return folder.name
    return ""
