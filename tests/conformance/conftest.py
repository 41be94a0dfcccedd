"""The device that kernels are checked on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hal.device import Device
from hal.devices import open_device


@pytest.fixture(scope="session")
def device(device_name: str) -> Device:
    return open_device(device_name).device


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Shapes are tiny: a second thread would only wait, for seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
