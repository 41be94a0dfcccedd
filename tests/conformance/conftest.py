"""The device that kernels are checked on."""

from __future__ import annotations

import pytest

from hal.device import Device
from hal.devices import open_device


@pytest.fixture(scope="session")
def device(device_name: str) -> Device:
    return open_device(device_name).device
