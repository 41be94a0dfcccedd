"""What drivers say, checked before it is believed: memory that cannot be, cards named twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from hal.device import Memory
from hal.memory import format_bytes
from hal.report import DeviceReport

# More than a 64-bit CPU of today can address physically (46 bits); no card comes near.
MAX_TOTAL_BYTES = 1 << 46


def screened(reports: Iterable[DeviceReport]) -> tuple[DeviceReport, ...]:
    """The reports of one look, each with its reason added where it cannot be true."""
    return tuple(_without_duplicates(map(_with_real_memory, reports)))


def _with_real_memory(report: DeviceReport) -> DeviceReport:
    """Nonsense is refused, for the memory plan would build on it; too much free is cut."""
    caps = report.capabilities
    if caps is None or report.reason:
        return report
    memory = caps.memory
    if lie := _lie(memory):
        return replace(report, reason=lie, remedy="restart the driver, or update it")
    if memory.available_bytes <= memory.total_bytes:
        return report
    note = (
        f"the driver says {format_bytes(memory.available_bytes)} are free of "
        f"{format_bytes(memory.total_bytes)}; cut to the total"
    )
    memory = replace(memory, available_bytes=memory.total_bytes)
    return replace(report, capabilities=replace(caps, memory=memory), note=note)


def _lie(memory: Memory) -> str:
    if not 0 < memory.total_bytes <= MAX_TOTAL_BYTES:
        return (
            f"the driver says that this device has {format_bytes(memory.total_bytes)} of memory, "
            "which cannot be"
        )
    if memory.available_bytes < 0:
        return (
            f"the driver says that {format_bytes(memory.available_bytes)} of "
            f"{format_bytes(memory.total_bytes)} are free, which cannot be"
        )
    return ""


def _without_duplicates(reports: Iterable[DeviceReport]) -> Iterator[DeviceReport]:
    """A card that two reports name is used through the first that is usable."""
    listed = list(reports)
    owners: dict[str, DeviceReport] = {}
    for report in listed:
        if report.card and report.is_usable:
            owners.setdefault(report.card, report)
    for report in listed:
        owner = owners.get(report.card, report)
        if owner is report or not report.is_usable:
            yield report
        else:
            yield replace(
                report,
                reason=f"the same card as {owner.spec} ({report.card}), listed a second time",
                remedy=f"use --device {owner.spec}; name each card once in *_VISIBLE_DEVICES",
            )
