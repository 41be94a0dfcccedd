"""From what a user wrote after `--device` to an open device, or the reason why not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hal.device import DEVICE_INTERFACE_VERSION, Device
from hal.devices.probe import probe, probe_vendor
from hal.devices.registry import all_vendors, in_tree_vendors
from hal.devices.vendor import Vendor
from hal.errors import ConfigError, DeviceUnavailable, UnsupportedError
from hal.memory import format_bytes
from hal.profiles import find_profile
from hal.report import DeviceReport, ProbeReport

# What other engines and vendors call them.
_OTHER_NAMES = {"nvidia": "cuda", "gpu": "auto", "amd": "rocm", "hip": "rocm", "x86": "cpu"}
AUTO = "auto"
_SEVERAL = re.compile(r"(\d+)x(\S+)")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """`vendor[:detail]`: "cuda:0", "null:mi300x", "auto"."""

    vendor: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.vendor}:{self.detail}" if self.detail else self.vendor


@dataclass(frozen=True, slots=True)
class Chosen:
    """A usable device, not opened yet, and one line that says why it is this one.

    posed: the absent device that it stands for, if any
    """

    report: DeviceReport
    reason: str
    posed: DeviceReport | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An open device and one line that says why it is this one."""

    device: Device
    spec: str
    reason: str


def parse_spec(text: str) -> DeviceSpec:
    """Split a `--device` value; raises UnsupportedError for several devices, ConfigError for one
    device named twice."""
    spec = text.strip().lower()
    several = _SEVERAL.fullmatch(spec)
    vendor, colon, detail = spec.partition(":")
    if colon and not detail:
        raise ConfigError(f"--device {text}: nothing follows the colon; write --device {vendor}")
    count = int(several.group(1)) if several else len(detail.split(","))
    if not several:
        _refuse_twins(text, vendor, detail)
    if (several or re.fullmatch(r"[\d,]+", detail)) and count != 1:
        raise UnsupportedError(
            f"not supported yet: tensor parallel over {count} devices (--device {text}); "
            "name one device, e.g. --device cuda:0, or --device cpu with --tensor-parallel-size"
        )
    if several:
        raise ConfigError(f"--device {text}: write the device itself, e.g. --device rocm:0")
    return DeviceSpec(vendor, detail)


def _refuse_twins(text: str, vendor: str, detail: str) -> None:
    indices = re.findall(r"\d+", detail) if re.fullmatch(r"[\d,]+", detail) else []
    twins = [index for index in dict.fromkeys(indices) if indices.count(index) > 1]
    if twins:
        raise ConfigError(
            f"--device {text} names {vendor}:{twins[0]} {indices.count(twins[0])} times; several "
            "devices are different cards. Name each once"
        )


def open_device(text: str, vendors: Mapping[str, Vendor] | None = None) -> Opened:
    """Open what `--device text` names; only that vendor is probed, all of them for "auto".

    Raises DeviceUnavailable with the probe's reason and the nearest device that works,
    ConfigError for a name nobody knows, UnsupportedError for several devices.
    """
    spec = parse_spec(text)
    known = _vendors_for(spec) if vendors is None else vendors
    check_spec(spec, known)
    chosen = choose_device(spec, _look_for(spec, known), known)
    vendor = known[chosen.report.spec.partition(":")[0]]
    name = str(spec) if spec.detail else chosen.report.spec
    return Opened(_open(vendor, chosen.report, spec.detail), name, chosen.reason)


def check_spec(spec: DeviceSpec, known: Mapping[str, Vendor]) -> None:
    """Raises ConfigError for a vendor that nobody knows, or what its vendor says of the detail."""
    if spec.vendor == AUTO:
        if spec.detail:
            raise ConfigError(f"--device {spec}: auto takes no index; name the vendor, e.g. cuda:1")
    elif spec.vendor not in known:
        raise ConfigError(_unknown(spec, known))
    else:
        known[spec.vendor].check_detail(spec.detail)


def choose_device(spec: DeviceSpec, report: ProbeReport, known: Mapping[str, Vendor]) -> Chosen:
    """What `spec` means among the devices found; raises DeviceUnavailable.

    spec: accepted by check_spec
    report: covers the vendor of `spec`; for "auto", every vendor that may be chosen
    """
    if spec.vendor == AUTO:
        return _best(report)
    named = _named(report.of_vendor(spec.vendor), spec)
    if not named.is_usable:
        raise DeviceUnavailable(_unavailable(spec, named, report))
    vendor = known[spec.vendor]
    posed = vendor.posed(spec.detail)
    return Chosen(
        report=named,
        reason=_with_note(vendor.reason(spec.detail), named),
        posed=None if posed is None else DeviceReport(spec=str(spec), capabilities=posed),
    )


def _vendors_for(spec: DeviceSpec) -> Mapping[str, Vendor]:
    """Other packages are only asked where this one does not know the name."""
    ours = in_tree_vendors()
    return ours if spec.vendor in ours else all_vendors()


def _look_for(spec: DeviceSpec, known: Mapping[str, Vendor]) -> ProbeReport:
    candidates = {name: vendor for name, vendor in known.items() if vendor.is_for_auto}
    if spec.vendor == AUTO:
        return probe(candidates.values())
    found = probe_vendor(known[spec.vendor])
    if _named(found, spec).is_usable:
        return ProbeReport(found)
    # The error names the nearest device that works: only then is it worth looking at the others.
    others = probe(vendor for name, vendor in candidates.items() if name != spec.vendor)
    return ProbeReport((*found, *others.devices))


def _best(report: ProbeReport) -> Chosen:
    """The accelerator with most memory, else the CPU."""
    cards = [d for d in report.usable() if d.capabilities and d.capabilities.is_accelerator]
    if cards:
        best = max(cards, key=_power)
        others = f"; the largest of {len(cards)} usable accelerators" if len(cards) > 1 else ""
        return Chosen(best, _with_note(f"{_description(best)}{others}", best))
    cpu = next(d for d in report.usable() if d.spec == "cpu")
    missing = [f"{d.spec}: {d.reason}" for d in report.devices if not d.is_usable]
    why = f"; no usable accelerator ({'; '.join(missing)})" if missing else ""
    return Chosen(cpu, f"{_description(cpu)}{why}")


def _with_note(reason: str, report: DeviceReport) -> str:
    return f"{reason}; {report.note}" if report.note else reason


def _power(report: DeviceReport) -> tuple[int, int]:
    assert report.capabilities is not None
    return report.capabilities.memory.total_bytes, report.capabilities.compute_units


def _description(report: DeviceReport) -> str:
    caps = report.capabilities
    assert caps is not None
    return f"{caps.name}, {caps.arch}, {format_bytes(caps.memory.available_bytes)} available"


def _open(vendor: Vendor, report: DeviceReport, detail: str) -> Device:
    device = vendor.open(report, detail)
    theirs, ours = device.interface_version, DEVICE_INTERFACE_VERSION
    if theirs != ours:
        remedy = (
            f"Install a release of the package behind {vendor.name!r} for version {ours}"
            if theirs < ours
            else f"Upgrade hal to a release that has version {theirs}"
        )
        raise UnsupportedError(
            f"--device {report.spec}: its package was written for version {theirs} of hal's device "
            f"interface, this hal has version {ours}. {remedy}"
        )
    return device


def _named(reports: tuple[DeviceReport, ...], spec: DeviceSpec) -> DeviceReport:
    """The report that `spec` means: its index, or the vendor's first usable device."""
    exact = [d for d in reports if d.spec == str(spec)]
    whole = [d for d in reports if d.spec == spec.vendor]
    if exact or whole:
        return (exact or whole)[0]
    if not spec.detail:
        return next((d for d in reports if d.is_usable), reports[0])
    found = ", ".join(d.spec for d in reports)
    return DeviceReport(spec=str(spec), reason=f"there is no such device, only {found}")


def _unavailable(spec: DeviceSpec, named: DeviceReport, report: ProbeReport) -> str:
    remedy = f" Remedy: {named.remedy}." if named.remedy else ""
    same = [d for d in report.of_vendor(spec.vendor) if d.is_usable]
    nearest = same[0] if same else _best(report).report
    return (
        f"--device {spec} cannot be used: {named.reason}.{remedy} "
        f"Nearest that works: --device {nearest.spec}"
    )


def _unknown(spec: DeviceSpec, known: Mapping[str, Vendor]) -> str:
    names = [AUTO, *known]
    if _is_profile(str(spec)):
        return (
            f"unknown device {str(spec)!r}: it is a profile, no device of this machine. "
            f"--device null:{spec} poses as it; hal-info plan --device {spec} plans for it"
        )
    close = difflib.get_close_matches(spec.vendor, names, n=1)
    meant = _OTHER_NAMES.get(spec.vendor) or (close[0] if close else "")
    hint = f" Did you mean --device {meant}?" if meant else ""
    return f"unknown device {str(spec)!r}; known: {', '.join(names)}.{hint}"


def _is_profile(name: str) -> bool:
    try:
        find_profile(name)
    except ConfigError:
        return False
    return True
