"""The device that kernels are checked on, and how often models are drawn."""

from __future__ import annotations

import pytest

from hal.device import Device
from hal.devices import open_device


@pytest.fixture(scope="session")
def device(device_name: str) -> Device:
    return open_device(device_name).device


@pytest.fixture(scope="session")
def num_seeds(request: pytest.FixtureRequest) -> int:
    """The value of --seeds: 1 unless told."""
    return int(request.config.getoption("--seeds"))
