"""Planted drivers that lie: no nonsense reaches the memory plan, and no card counts twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from recorded_accelerator import H100, RecordedAccelerator

from hal.device import Capabilities, Device, Memory, MemoryKind
from hal.devices import open_device
from hal.devices.cpu import CpuDevice
from hal.devices.probe import probe
from hal.devices.registry import CpuVendor, TorchVendor
from hal.devices.screen import MAX_TOTAL_BYTES
from hal.devices.torch_build import TorchBuild
from hal.devices.torch_probe import cards
from hal.devices.vendor import Vendor
from hal.errors import DeviceUnavailable
from hal.report import DeviceReport

GIB = 1 << 30
CARD = Capabilities(
    vendor="example",
    name="example card",
    arch="ex_1",
    memory=Memory(kind=MemoryKind.DEDICATED, total_bytes=8 * GIB, available_bytes=6 * GIB),
    compute_units=1,
    simd_width=32,
    features=frozenset(),
    is_accelerator=True,
)


class PlantedVendor(Vendor):
    """A driver in this process that says what it is told to."""

    def __init__(self, name: str, *reports: DeviceReport) -> None:
        self.name = name
        self._reports = reports

    def probe(self) -> tuple[DeviceReport, ...]:
        return self._reports

    def open(self, report: DeviceReport, detail: str) -> Device:
        return CpuDevice(report.capabilities)


def card(spec: str, total: int = 8 * GIB, free: int = 6 * GIB, identity: str = "") -> DeviceReport:
    memory = replace(CARD.memory, total_bytes=total, available_bytes=free)
    return DeviceReport(spec=spec, capabilities=replace(CARD, memory=memory), card=identity)


def planted(*reports: DeviceReport) -> dict[str, Vendor]:
    """The vendors of a machine whose one accelerator driver answers `reports`."""
    name = reports[0].spec.partition(":")[0]
    return {name: PlantedVendor(name, *reports), "cpu": CpuVendor()}


@pytest.mark.parametrize(
    ("total", "free", "reason"),
    [
        (0, 0, "has 0 B of memory, which cannot be"),
        (-8 * GIB, 0, "has -8.00 GiB of memory, which cannot be"),
        (MAX_TOTAL_BYTES + 1, 6 * GIB, "has 65536.00 GiB of memory, which cannot be"),
        (1 << 63, 1 << 63, "of memory, which cannot be"),
        (8 * GIB, -1, "says that -1 B of 8.00 GiB are free, which cannot be"),
    ],
)
def test_memory_that_cannot_be_makes_a_device_unusable(total: int, free: int, reason: str) -> None:
    vendors = planted(card("ex:0", total, free))
    (report, cpu) = probe(vendors.values()).devices
    assert not report.is_usable and reason in report.reason and report.remedy
    assert cpu.is_usable
    with pytest.raises(DeviceUnavailable, match="which cannot be.*works: --device cpu"):
        open_device("ex:0", vendors)
    assert open_device("auto", vendors).spec == "cpu"


def test_more_free_than_there_is_is_cut_and_said() -> None:
    vendors = planted(card("ex:0", 8 * GIB, 80 * GIB))
    report = probe(vendors.values()).devices[0]
    note = "the driver says 80.00 GiB are free of 8.00 GiB; cut to the total"
    assert report.is_usable and report.note == note
    assert report.capabilities is not None
    assert report.capabilities.memory.available_bytes == 8 * GIB
    opened = open_device("ex:0", vendors)
    assert opened.device.capabilities.memory.available_bytes == 8 * GIB
    assert opened.reason == f"named by --device; {note}"
    assert open_device("auto", vendors).reason.endswith(f"8.00 GiB available; {note}")


def test_honest_memory_passes_untouched() -> None:
    honest = (card("ex:0"), card("ex:1", 8 * GIB, 8 * GIB), card("ex:2", 8 * GIB, 0))
    assert probe([PlantedVendor("ex", *honest)]).devices == honest
    broken = DeviceReport(spec="ex:3", reason="in exclusive mode")
    assert probe([PlantedVendor("ex", broken)]).devices == (broken,)


def lying_child(value: str) -> TorchVendor:
    """A driver in a child process that answers `value` for its total memory."""
    template = json.dumps(card("cuda:0").as_json())
    code = (
        f"import json; report = json.loads({template!r})\n"
        f"report['capabilities']['memory']['total_bytes'] = json.loads({value!r})\n"
        "print('hal-devices:' + json.dumps([report]))"
    )
    command: Sequence[str] = (sys.executable, "-c", code)

    def driver_is_there(build: TorchBuild | None) -> None:
        return None

    return TorchVendor("cuda", driver_is_there, command, timeout_s=300.0)


@pytest.mark.parametrize("value", ['"much"', "NaN", "1.5", "true", "null"])
def test_memory_that_is_no_number_damages_the_answer(value: str) -> None:
    (report,) = probe([lying_child(value)]).devices
    assert report.reason.startswith("the probe's answer is damaged: ")
    assert "total_bytes is" in report.reason


def test_a_lie_from_the_child_is_refused_too() -> None:
    (report,) = probe([lying_child("0")]).devices
    assert report.reason == "the driver says that this device has 0 B of memory, which cannot be"


def test_a_card_listed_twice_is_used_once() -> None:
    vendors = planted(
        card("ex:0", identity="UUID 7"), card("ex:1", identity="UUID 7"), card("ex:2")
    )
    first, twin, other = probe(vendors.values()).devices[:3]
    assert first.is_usable and other.is_usable
    assert twin.reason == "the same card as ex:0 (UUID 7), listed a second time"
    with pytest.raises(DeviceUnavailable, match="same card as ex:0.*Nearest.*--device ex:0"):
        open_device("ex:1", vendors)
    assert open_device("auto", vendors).reason.endswith("the largest of 2 usable accelerators")


def test_two_vendors_that_report_one_card() -> None:
    one = PlantedVendor("one", card("one:0", identity="0000:41:00.0"))
    two = PlantedVendor("two", card("two:0", identity="0000:41:00.0"))
    assert [d.is_usable for d in probe([one, two]).devices] == [True, False]
    unusable = replace(card("one:0", identity="0000:41:00.0"), reason="no kernels for it")
    found = probe([PlantedVendor("one", unusable), two]).devices
    assert [d.reason for d in found] == ["no kernels for it", ""], "the usable way in is kept"


def test_cards_without_an_identity_are_never_duplicates() -> None:
    assert all(
        d.is_usable for d in probe([PlantedVendor("ex", card("ex:0"), card("ex:1"))]).devices
    )


def test_torch_tells_which_card_an_index_is() -> None:
    twice = replace(H100, uuid="3f1c2d9e-0000-4000-8000-000000000001")
    api = RecordedAccelerator(cards=(twice, twice, H100))
    found = cards(api, "cuda", "13.0")
    identity = "UUID 3f1c2d9e-0000-4000-8000-000000000001"
    assert [report.card for report in found] == [identity, identity, ""]
    screened = probe([PlantedVendor("cuda", *found)]).devices
    assert [report.is_usable for report in screened] == [True, False, True]
