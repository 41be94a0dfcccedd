"""A device without hardware: the whole engine on reference kernels, in host memory."""

from __future__ import annotations

from hal.devices import host
from hal.devices.cpu import CpuDevice
from hal.errors import UnsupportedError


class NullDevice(CpuDevice):
    """The reference machine that other devices are compared with.

    profile: the device to pose as and the faults to inject ("mi300x,oom@17"); only "" works today.
    """

    def __init__(self, profile: str = "") -> None:
        if profile:
            raise UnsupportedError(
                f"not supported yet: null:{profile}; the null device neither poses as a profile "
                "nor injects faults. Use --device null"
            )
        super().__init__(host.null_capabilities())
