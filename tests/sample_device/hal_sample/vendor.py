"""Finds the sample cards. No torch and no driver is imported here: every `hal-info` runs this."""

from __future__ import annotations

import os

from hal.device import Capabilities, Device, Memory, MemoryKind, Versions
from hal.devices.vendor import Vendor
from hal.report import DeviceReport

CARD_BYTES = 2 << 30


class SampleVendor(Vendor):
    """`--device sample`: one card, unless SAMPLE_CARDS=0 says that there is none.

    A real vendor looks at /dev or /sys first, and asks its driver through hal.devices.child.ask,
    so that a driver that crashes or hangs becomes a reason.
    """

    is_for_auto = False  # a sample must not be chosen by itself; a real card leaves this out

    def probe(self) -> tuple[DeviceReport, ...]:
        if os.environ.get("SAMPLE_CARDS") == "0":
            return (
                DeviceReport(
                    spec="sample",
                    reason="no sample card is plugged in",
                    remedy="unset SAMPLE_CARDS",
                ),
            )
        return (DeviceReport(spec="sample:0", capabilities=_capabilities()),)

    def open(self, report: DeviceReport, detail: str) -> Device:
        from hal_sample.device import SampleDevice  # torch and drivers only from here on

        assert report.capabilities is not None, "only usable reports are opened"
        return SampleDevice(report.capabilities)


def _capabilities() -> Capabilities:
    return Capabilities(
        vendor="sample",
        name="Sample Card S1",
        arch="s1",
        memory=Memory(
            kind=MemoryKind.DEDICATED, total_bytes=CARD_BYTES, available_bytes=CARD_BYTES
        ),
        compute_units=8,
        simd_width=32,
        features=frozenset(),  # no matrix instructions, no graphs: hal plans accordingly
        is_accelerator=True,
        versions=Versions(driver="sample-driver 1.0"),
    )
