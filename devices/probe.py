"""The whole look at the machine: every vendor's devices, and the reason for each that is absent."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from hal.devices.registry import all_vendors
from hal.devices.screen import screened
from hal.devices.vendor import Vendor
from hal.report import DeviceReport, ProbeReport


def probe(vendors: Iterable[Vendor] | None = None) -> ProbeReport:
    """Every device found or not, and why. Never raises; a hanging driver costs its timeout once,
    because vendors are asked side by side."""
    asked = list(all_vendors().values() if vendors is None else vendors)
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        found = [report for reports in pool.map(probe_vendor, asked) for report in reports]
    return ProbeReport(screened(found))


def probe_vendor(vendor: Vendor) -> tuple[DeviceReport, ...]:
    """One vendor's devices; what its probe raises becomes the reason."""
    try:
        return screened(vendor.probe())
    except Exception as error:  # noqa: BLE001  # foreign code behind an entry point
        reason = f"the probe of {vendor.name} failed: {type(error).__name__}: {error}"
        return (DeviceReport(spec=vendor.name, reason=reason),)
