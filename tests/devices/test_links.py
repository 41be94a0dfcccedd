"""Links of a card, read from a recorded /sys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from recorded_accelerator import H100, RecordedAccelerator, RecordedCard

from hal.devices.card import card_slot
from hal.devices.links import links
from hal.devices.torch_probe import cards

SLOT = "0000:41:00.0"


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _pci(root: Path, speed: str, width: str) -> None:
    _write(root, f"sys/bus/pci/devices/{SLOT}/max_link_speed", f"{speed}\n")
    _write(root, f"sys/bus/pci/devices/{SLOT}/current_link_width", f"{width}\n")


def test_pcie_speed_and_width(tmp_path: Path) -> None:
    _pci(tmp_path, "32.0 GT/s PCIe", "16")
    assert links(SLOT, tmp_path) == ("PCIe 32 GT/s x16 (63.0 GB/s each way)",)
    _pci(tmp_path, "5.0 GT/s PCIe", "8")
    assert links(SLOT, tmp_path) == ("PCIe 5 GT/s x8 (4.0 GB/s each way)",)


def test_a_slot_without_a_link_says_nothing(tmp_path: Path) -> None:
    assert links(SLOT, tmp_path) == ()
    _pci(tmp_path, "Unknown", "16")
    assert links(SLOT, tmp_path) == ()
    _pci(tmp_path, "16.0 GT/s PCIe", "0")
    assert links(SLOT, tmp_path) == ()


def test_xgmi_peers_are_those_of_the_node_in_this_slot(tmp_path: Path) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    _write(tmp_path, f"{nodes}/0/properties", "cpu_cores_count 96\nlocation_id 0\n")
    _write(tmp_path, f"{nodes}/0/io_links/0/properties", "type 11\n")
    _write(tmp_path, f"{nodes}/1/properties", f"domain 0\nlocation_id {0x41 << 8}\n")
    for number, kind in enumerate(("2", "11", "11", "11")):
        _write(tmp_path, f"{nodes}/1/io_links/{number}/properties", f"type {kind}\nweight 15\n")
    assert links(SLOT, tmp_path) == ("XGMI to 3 peers",)
    assert links("0000:42:00.0", tmp_path) == ()


@dataclass(frozen=True)
class Placed(RecordedCard):
    """A card of a torch that tells the slot."""

    pci_domain_id: int = 1
    pci_bus_id: int = 0x41
    pci_device_id: int = 2


def test_the_slot_is_what_torch_says_or_the_driver_lists(tmp_path: Path) -> None:
    placed = Placed(name="a", major=9, minor=0, multi_processor_count=1, total_memory=1)
    assert card_slot(placed, tmp_path) == "0001:41:02.0"
    card = replace(H100, uuid="3f1c2d9e-0000-4000-8000-000000000001")
    assert card_slot(card, tmp_path) == ""
    gpus = "proc/driver/nvidia/gpus"
    _write(tmp_path, f"{gpus}/0000:17:00.0/information", "GPU UUID: GPU-other\n")
    _write(tmp_path, f"{gpus}/{SLOT}/information", f"GPU UUID: \t GPU-{card.uuid}\n")
    assert card_slot(card, tmp_path) == SLOT


def test_a_card_without_a_slot_has_no_links() -> None:
    (report,) = cards(RecordedAccelerator(cards=(H100,)), "cuda", "13.0")
    assert report.capabilities is not None
    assert report.capabilities.links == ()
