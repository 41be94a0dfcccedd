"""Every vendor that `--device` knows: those of this folder, then entry points of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from hal.device import Capabilities, Device
from hal.devices import cuda, host, rocm
from hal.devices.child import TIMEOUT_S, ask, module_command
from hal.devices.null_spec import parse_null
from hal.devices.opencl import OpenclVendor
from hal.devices.torch_build import TorchBuild, torch_build
from hal.devices.vendor import ENTRY_POINT_GROUP, Absence, Vendor
from hal.errors import ConfigError, DeviceUnavailable
from hal.report import DeviceReport


class CpuVendor(Vendor):
    """Always there."""

    name = "cpu"

    def probe(self) -> tuple[DeviceReport, ...]:
        return (DeviceReport(spec=self.name, capabilities=host.cpu_capabilities()),)

    def check_detail(self, detail: str) -> None:
        if detail:
            raise ConfigError(
                f"--device cpu:{detail}: the CPU is one device; write --device cpu, and limit its "
                "cores with taskset or --threads"
            )

    def open(self, report: DeviceReport, detail: str) -> Device:
        from hal.devices.cpu import CpuDevice

        return CpuDevice(report.capabilities)


class NullVendor(Vendor):
    """Always there, and never chosen by itself; poses as a profile and injects faults."""

    name = "null"
    is_for_auto = False

    def probe(self) -> tuple[DeviceReport, ...]:
        return (DeviceReport(spec=self.name, capabilities=host.null_capabilities()),)

    def check_detail(self, detail: str) -> None:
        parse_null(detail)

    def reason(self, detail: str) -> str:
        return parse_null(detail).reason

    def posed(self, detail: str) -> Capabilities | None:
        profile = parse_null(detail).profile
        return None if profile is None else profile.capabilities()

    def open(self, report: DeviceReport, detail: str) -> Device:
        from hal.devices.null import NullDevice

        return NullDevice(parse_null(detail))


class TorchVendor(Vendor):
    """A vendor whose cards torch drives: a look that needs no driver, then a child that asks.

    look: told what the installed torch was built for, says why no card can be used, or None
    """

    def __init__(
        self,
        name: str,
        look: Callable[[TorchBuild | None], Absence | None],
        command: Sequence[str] = module_command("hal.devices.torch_probe"),
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name = name
        self._look = look
        self._command = command
        self._timeout_s = timeout_s

    def probe(self) -> tuple[DeviceReport, ...]:
        absence = self._look(torch_build())
        if absence is not None:
            return (DeviceReport(spec=self.name, reason=absence.reason, remedy=absence.remedy),)
        answer = ask(self._command, self._timeout_s)
        if answer.failure:
            return (DeviceReport(spec=self.name, reason=answer.failure),)
        return answer.devices

    def open(self, report: DeviceReport, detail: str) -> Device:
        from hal.devices.torch_accelerator import TorchAccelerator

        assert report.capabilities is not None, "only usable reports are opened"
        return TorchAccelerator(report.capabilities, int(report.spec.partition(":")[2]))


class BrokenVendor(Vendor):
    """A package that registered a vendor which cannot be loaded: its reason is its report."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def probe(self) -> tuple[DeviceReport, ...]:
        return (DeviceReport(spec=self.name, reason=self._reason),)

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise DeviceUnavailable(self._reason)


def in_tree_vendors() -> dict[str, Vendor]:
    """The vendors of this folder; constructing them looks at nothing."""
    found: tuple[Vendor, ...] = (
        TorchVendor("cuda", cuda.look),
        TorchVendor("rocm", rocm.look),
        OpenclVendor(),
        CpuVendor(),
        NullVendor(),
    )
    return {vendor.name: vendor for vendor in found}


def plugged_in_vendors(points: Iterable[EntryPoint] | None = None) -> dict[str, Vendor]:
    """The vendors that installed packages register in the entry-point group `hal.devices`."""
    if points is None:
        points = entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: _load(point) for point in points}


def _load(point: EntryPoint) -> Vendor:
    origin = f"entry point {point.name!r} = {point.value!r} of group {ENTRY_POINT_GROUP!r}"
    try:
        vendor = point.load()()
    except Exception as error:  # noqa: BLE001  # foreign code: whatever it raises is its reason
        return BrokenVendor(point.name, f"{origin} failed: {type(error).__name__}: {error}")
    if not isinstance(vendor, Vendor):
        return BrokenVendor(point.name, f"{origin} is no hal.devices.vendor.Vendor")
    vendor.name = point.name
    return vendor


def all_vendors(points: Iterable[EntryPoint] | None = None) -> dict[str, Vendor]:
    """Every vendor; a plugged-in one never replaces one of this folder."""
    return {**plugged_in_vendors(points), **in_tree_vendors()}
