"""Implementations of the ops, one folder per vendor, each with a reason when it cannot run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

ENTRY_POINT_GROUP = "hal.kernels"

# Each imports every kernel module of its folder. Whether a kernel can run is for its predicate to
# say, so importing decides nothing and needs no vendor's library.
KERNEL_PACKAGES = (
    "hal.kernels.reference",
    "hal.kernels.torch_native",
    "hal.kernels.cpu",
    "hal.kernels.triton",
    "hal.kernels.rtc",
)

_logger = logging.getLogger("hal")


def register_all() -> None:
    """Register every kernel beside its op; a second call changes nothing."""
    for package in KERNEL_PACKAGES:
        import_module(package)
    _register_plugged_in()


@cache
def _register_plugged_in() -> None:
    register_from(entry_points(group=ENTRY_POINT_GROUP))


def register_from(points: Iterable[EntryPoint]) -> None:
    """Import the modules that other packages name in the entry-point group `hal.kernels`.

    One that cannot be imported is left out with a warning: it must not take hal's own kernels,
    and with them every other device, down with it.
    """
    for point in points:
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  # foreign code: whatever it raises is its reason
            origin = f"entry point {point.name!r} = {point.value!r} of group {ENTRY_POINT_GROUP!r}"
            _logger.warning("no kernels from %s: %s: %s", origin, type(error).__name__, error)
