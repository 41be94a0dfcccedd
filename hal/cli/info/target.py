"""The device that a question is about: one of this machine, or a profile of one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hal.device import Capabilities
from hal.devices.opening import AUTO, DeviceSpec, check_spec, choose_device, parse_spec
from hal.devices.probe import probe, probe_vendor
from hal.devices.registry import all_vendors
from hal.devices.vendor import Vendor
from hal.report import ProbeReport


@dataclass(frozen=True, slots=True)
class Target:
    """A device to explain for; `is_present` is False where only its profile is known."""

    spec: str
    capabilities: Capabilities
    is_present: bool
    reason: str


def find_target(text: str, vendors: Mapping[str, Vendor] | None = None) -> Target:
    """What `--device text` means, without opening it; for one that poses, what it poses as.

    Raises ConfigError, or DeviceUnavailable with the probe's reason.
    """
    spec = parse_spec(text)
    known = all_vendors() if vendors is None else vendors
    check_spec(spec, known)
    chosen = choose_device(spec, _look(spec, known), known)
    meant = chosen.posed or chosen.report
    assert meant.capabilities is not None
    return Target(meant.spec, meant.capabilities, chosen.posed is None, chosen.reason)


def _look(spec: DeviceSpec, known: Mapping[str, Vendor]) -> ProbeReport:
    """Only the vendor that is named, unless its answer is that it has nothing usable."""
    if spec.vendor != AUTO:
        found = ProbeReport(probe_vendor(known[spec.vendor]))
        if found.usable():
            return found
    return probe(v for v in known.values() if v.is_for_auto or v.name == spec.vendor)
