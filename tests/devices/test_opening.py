"""`--device` is never ignored: it opens what it names, or says why not and what would work."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from hal.device import DEVICE_INTERFACE_VERSION as OURS
from hal.device import Capabilities, Device, Memory, MemoryKind
from hal.devices import host, open_device
from hal.devices.cpu import CpuDevice
from hal.devices.null import NullDevice
from hal.devices.registry import CpuVendor, NullVendor, all_vendors, plugged_in_vendors
from hal.devices.vendor import Vendor
from hal.errors import ConfigError, DeviceUnavailable, UnsupportedError
from hal.report import DeviceReport


def card(name: str, total_bytes: int = 1 << 30) -> Capabilities:
    memory = Memory(kind=MemoryKind.DEDICATED, total_bytes=total_bytes, available_bytes=total_bytes)
    return Capabilities(
        vendor="example",
        name=name,
        arch="ex_1",
        memory=memory,
        compute_units=1,
        simd_width=32,
        features=frozenset(),
        is_accelerator=True,
    )


class FixedVendor(Vendor):
    """A vendor with the given devices; opening one gives a CPU device that carries its name."""

    def __init__(self, name: str, *reports: DeviceReport) -> None:
        self.name = name
        self._reports = reports

    def probe(self) -> tuple[DeviceReport, ...]:
        return self._reports

    def open(self, report: DeviceReport, detail: str) -> Device:
        return CpuDevice(report.capabilities)


class UntouchableVendor(Vendor):
    """Looking at it is the failure."""

    name = "cuda"

    def probe(self) -> tuple[DeviceReport, ...]:
        pytest.fail("an accelerator was probed although the CPU was named")

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise NotImplementedError


def vendors(*found: Vendor) -> dict[str, Vendor]:
    return {v.name: v for v in (*found, CpuVendor(), NullVendor())}


BROKEN = DeviceReport(spec="cuda", reason="the driver hangs", remedy="reboot")
SMALL = DeviceReport(spec="cuda:0", capabilities=card("small"))
BUSY = DeviceReport(spec="cuda:1", capabilities=card("busy", 8 << 30), reason="in exclusive mode")
LARGE = DeviceReport(spec="rocm:0", capabilities=card("large", 4 << 30))


def test_the_cpu_opens_without_a_look_at_accelerators() -> None:
    opened = open_device("cpu", vendors(UntouchableVendor()))
    assert opened.spec == "cpu"
    assert isinstance(opened.device, CpuDevice)


def test_null_is_opened_when_named() -> None:
    assert isinstance(open_device("null").device, NullDevice)


def test_a_broken_device_gives_reason_remedy_and_the_nearest_choice() -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        open_device("cuda", vendors(FixedVendor("cuda", BROKEN)))
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert "--device cuda cannot be used: the driver hangs. Remedy: reboot." in text
    assert text.endswith("Nearest that works: --device cpu")


def test_the_nearest_choice_is_of_the_same_vendor_first() -> None:
    known = vendors(FixedVendor("cuda", SMALL, BUSY), FixedVendor("rocm", LARGE))
    with pytest.raises(DeviceUnavailable, match="exclusive mode.*works: --device cuda:0"):
        open_device("cuda:1", known)
    with pytest.raises(DeviceUnavailable, match="only cuda:0, cuda:1.*--device cuda:0"):
        open_device("cuda:7", known)


def test_another_vendors_card_is_nearer_than_the_cpu() -> None:
    known = vendors(FixedVendor("cuda", BROKEN), FixedVendor("rocm", LARGE))
    with pytest.raises(DeviceUnavailable, match="works: --device rocm:0"):
        open_device("cuda", known)


def test_a_vendor_alone_means_its_first_usable_card() -> None:
    known = vendors(FixedVendor("cuda", BUSY, SMALL))
    opened = open_device("cuda", known)
    assert opened.spec == "cuda:0"
    assert opened.device.capabilities.name == "small"


def test_auto_takes_the_usable_accelerator_with_most_memory() -> None:
    opened = open_device(
        "auto", vendors(FixedVendor("cuda", SMALL, BUSY), FixedVendor("rocm", LARGE))
    )
    assert opened.spec == "rocm:0"
    assert opened.reason == "large, ex_1, 4.00 GiB available; the largest of 2 usable accelerators"


def test_auto_falls_to_the_cpu_and_says_why() -> None:
    opened = open_device("auto", vendors(FixedVendor("cuda", BROKEN)))
    assert opened.spec == "cpu"
    assert opened.reason.endswith("; no usable accelerator (cuda: the driver hangs)")
    assert "\n" not in opened.reason


@pytest.mark.parametrize("spec", ["cuda:0,1", "rocm:0,1", "2xmi300x", "8xcuda", "cuda:0,1,2,3"])
def test_several_devices_are_refused(spec: str) -> None:
    with pytest.raises(UnsupportedError, match="not supported yet: tensor parallel") as caught:
        open_device(spec)
    assert spec in str(caught.value)


@pytest.mark.parametrize("spec", ["cuda:0,0", "rocm:1,0,1"])
def test_one_device_named_twice_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"names (cuda:0|rocm:1) 2 times.*different cards"):
        open_device(spec)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("cudaa", "--device cuda?"),
        ("nvidia", "--device cuda?"),
        ("amd:0", "--device rocm?"),
        ("hip", "--device rocm?"),
        ("cpu0", "--device cpu?"),
        ("nul", "--device null?"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown device") as caught:
        open_device(spec)
    assert hint in str(caught.value)


@pytest.mark.parametrize("spec", ["h100", "3090", "gfx942"])
def test_a_profile_is_told_apart_from_a_device(spec: str) -> None:
    with pytest.raises(ConfigError, match=f"'{spec}': it is a profile.*--device null:{spec} poses"):
        open_device(spec)


@pytest.mark.parametrize("spec", ["", "cpu:0", "1xmi300x", "cuda:x", "auto:1", "null:", "cuda:"])
def test_a_malformed_spec_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        open_device(spec)


def test_opencl_is_reported_but_cannot_be_opened() -> None:
    with pytest.raises(DeviceUnavailable, match="OpenCL"):
        open_device("opencl")


class ExampleVendor(Vendor):
    """What a package outside this repository would register."""

    def probe(self) -> tuple[DeviceReport, ...]:
        return (DeviceReport(spec=f"{self.name}:0", capabilities=card("plugged in")),)

    def open(self, report: DeviceReport, detail: str) -> Device:
        return CpuDevice(report.capabilities)


class OldDevice(CpuDevice):
    """Written against an older interface."""

    interface_version = OURS - 1


class NewDevice(CpuDevice):
    """Written against a newer interface."""

    interface_version = OURS + 1


class OldVendor(ExampleVendor):
    """Opens devices of an older interface."""

    def open(self, report: DeviceReport, detail: str) -> Device:
        return OldDevice(host.cpu_capabilities())


class NewVendor(ExampleVendor):
    """Opens devices of a newer interface."""

    def open(self, report: DeviceReport, detail: str) -> Device:
        return NewDevice(host.cpu_capabilities())


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="hal.devices")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file under a name that an entry point can import."""
    import sys

    monkeypatch.setitem(sys.modules, "example_accelerator", sys.modules[__name__])


@pytest.mark.usefixtures("importable")
def test_a_vendor_of_another_package_opens_like_ours() -> None:
    plugged = plugged_in_vendors([point("example", "example_accelerator:ExampleVendor")])
    opened = open_device("example:0", {**vendors(), **plugged})
    assert opened.device.capabilities.name == "plugged in"


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("vendor", "version", "remedy"),
    [
        (
            "OldVendor",
            OURS - 1,
            f"Install a release of the package behind 'other' for version {OURS}",
        ),
        ("NewVendor", OURS + 1, f"Upgrade hal to a release that has version {OURS + 1}"),
    ],
)
def test_a_device_of_another_interface_version_is_refused(
    vendor: str, version: int, remedy: str
) -> None:
    plugged = plugged_in_vendors([point("other", f"example_accelerator:{vendor}")])
    with pytest.raises(UnsupportedError) as caught:
        open_device("other", {**vendors(), **plugged})
    assert caught.value.message == (
        f"--device other:0: its package was written for version {version} of hal's device "
        f"interface, this hal has version {OURS}. {remedy}"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_package:Vendor", "ModuleNotFoundError"),
        ("json:JSONDecoder", "is no hal.devices.vendor.Vendor"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_a_reason(value: str, reason: str) -> None:
    plugged = plugged_in_vendors([point("broken", value)])
    with pytest.raises(DeviceUnavailable, match=reason):
        open_device("broken", {**vendors(), **plugged})


@pytest.mark.usefixtures("importable")
def test_packages_add_vendors_and_replace_none_of_ours() -> None:
    points = [point(name, "example_accelerator:ExampleVendor") for name in ("cpu", "example")]
    found = all_vendors(points)
    assert isinstance(found["cpu"], CpuVendor)
    assert isinstance(found["example"], ExampleVendor)
