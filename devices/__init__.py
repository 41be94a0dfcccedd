"""One file per vendor: probe, memory, streams, graphs. Importing this loads no torch, no driver."""

from __future__ import annotations

from hal.devices.opening import Opened, open_device
from hal.devices.probe import probe

__all__ = ["Opened", "open_device", "probe"]
