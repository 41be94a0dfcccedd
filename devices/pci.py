"""Which graphics and compute cards sit on the PCI bus: the cheapest look, no driver needed."""

from __future__ import annotations

from pathlib import Path

from hal.devices.host import read_text

NVIDIA = "0x10de"
AMD = "0x1002"
# PCI base classes: display controller, processing accelerator.
_ACCELERATOR_CLASSES = ("0x03", "0x12")


def accelerator_slots(pci_vendor: str, root: Path = Path("/")) -> tuple[str, ...]:
    """The slots ("0000:41:00.0") of this vendor's cards."""
    slots = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        is_accelerator = read_text(folder / "class").startswith(_ACCELERATOR_CLASSES)
        if is_accelerator and read_text(folder / "vendor").strip() == pci_vendor:
            slots.append(folder.name)
    return tuple(slots)
