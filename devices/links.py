"""How a card is joined to the host and to others, as the kernel lists it: no driver is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hal.devices.host import read_text

_KFD_NODES = "sys/class/kfd/kfd/topology/nodes"
_XGMI = "11"  # io_link type of the KFD topology
# Bytes of payload per transfer and lane: 8b/10b coding up to 5 GT/s, 128b/130b above.
_OLD_CODING, _NEW_CODING = 0.8 / 8, 128 / 130 / 8


def links(slot: str, root: Path = Path("/")) -> tuple[str, ...]:
    """Every link of the card in PCI slot "0000:41:00.0", in words; () where nothing is listed."""
    found = (_pcie(slot, root), _xgmi(slot, root)) if slot else ()
    return tuple(link for link in found if link)


def _pcie(slot: str, root: Path) -> str:
    """The fastest speed it can take, at the width it has now: an idle card lowers its speed."""
    folder = root / "sys/bus/pci/devices" / slot
    speed = re.match(r"([\d.]+) GT/s", read_text(folder / "max_link_speed"))
    width = read_text(folder / "current_link_width").strip()
    if speed is None or not width.isdigit() or width == "0":
        return ""
    transfers = float(speed.group(1))
    coding = _NEW_CODING if transfers > 5 else _OLD_CODING
    rate = transfers * int(width) * coding
    return f"PCIe {transfers:g} GT/s x{width} ({rate:.1f} GB/s each way)"


def _xgmi(slot: str, root: Path) -> str:
    num_peers = sum(1 for kind in _io_link_types(slot, root) if kind == _XGMI)
    return f"XGMI to {num_peers} peer{'s' if num_peers > 1 else ''}" if num_peers else ""


def _io_link_types(slot: str, root: Path) -> Iterator[str]:
    for node in sorted((root / _KFD_NODES).glob("*")):
        if _slot_of(_properties(node)) == slot:
            for link in sorted((node / "io_links").glob("*")):
                yield _properties(link).get("type", "")


def _slot_of(node: dict[str, str]) -> str:
    """location_id packs bus, device and function as PCI does."""
    if not node.get("location_id", "").isdigit():
        return ""
    domain, location = int(node.get("domain", "0")), int(node["location_id"])
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 31:02x}.{location & 7}"


def _properties(folder: Path) -> dict[str, str]:
    pairs = (line.split() for line in read_text(folder / "properties").splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
