"""A device without hardware: the whole engine on reference kernels, in host memory."""

from __future__ import annotations

from hal.devices import host
from hal.devices.cpu import CpuDevice


class NullDevice(CpuDevice):
    """The reference machine that other devices are compared with."""

    def __init__(self) -> None:
        super().__init__(host.null_capabilities())
