"""What a vendor's file offers: finding its devices and opening one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from hal.device import Capabilities, Device
from hal.errors import ConfigError
from hal.report import DeviceReport

ENTRY_POINT_GROUP = "hal.devices"


@dataclass(frozen=True, slots=True)
class Absence:
    """Why a vendor's devices cannot be there, and the step that would change it."""

    reason: str
    remedy: str = ""


class Vendor(ABC):
    """One row of `--device`. An entry point of group `hal.devices` names a subclass.

    Its module must not import torch or a driver: probing several vendors has to stay cheap.

    is_for_auto: whether `--device auto` may choose its devices
    """

    name: str
    is_for_auto: bool = True

    @abstractmethod
    def probe(self) -> tuple[DeviceReport, ...]:
        """Every device of this vendor, or one report that says why there is none.

        Nothing that could crash or hang runs in this process; see `hal.devices.child`.
        """

    def check_detail(self, detail: str) -> None:
        """Raises ConfigError for what may not follow `name:`; by default all but an index."""
        if detail and not detail.isdigit():
            raise ConfigError(
                f"--device {self.name}:{detail}: {detail!r} is no index; write e.g. {self.name}:0"
            )

    def reason(self, detail: str) -> str:
        """Why `name:detail` means its device, in one line."""
        return "named by --device"

    def posed(self, detail: str) -> Capabilities | None:
        """What the device of `name:detail` poses as; None: it is what it is."""
        return None

    @abstractmethod
    def open(self, report: DeviceReport, detail: str) -> Device:
        """The device behind a usable report; `detail` is what followed `name:` in the spec."""
