"""The CPU device: zero copies, and refusals by arithmetic instead of by the kernel's killer."""

from __future__ import annotations

import numpy as np
import pytest

from hal.devices import host
from hal.devices.cpu import CpuDevice
from hal.devices.null import NullDevice
from hal.devices.torch_device import host_tensor, is_out_of_memory
from hal.dtypes import DType
from hal.errors import DeviceOutOfMemory


def test_upload_shares_the_hosts_memory() -> None:
    values = np.zeros(4, dtype=np.float32)
    x = CpuDevice().upload(values)
    values[2] = 7
    assert CpuDevice().download(x)[2] == 7


@pytest.mark.parametrize("is_writeable", [True, False])
def test_no_copy_even_of_read_only_memory(is_writeable: bool) -> None:
    values = np.arange(8, dtype=np.int64)
    values.flags.writeable = is_writeable
    assert host_tensor(values).data_ptr() == values.__array_interface__["data"][0]


def test_memory_outlives_the_array_it_came_from() -> None:
    values = np.arange(1 << 16)
    values.flags.writeable = False
    x = host_tensor(values)
    del values
    assert int(x.sum()) == (1 << 15) * ((1 << 16) - 1)


def test_promised_but_untouched_memory_is_not_free() -> None:
    """Linux would promise both halves and kill the process when they are used."""
    device = CpuDevice()
    part = device.free_bytes() * 2 // 3
    first = device.empty((part,), DType.UINT8)
    assert device.free_bytes() < part
    with pytest.raises(DeviceOutOfMemory, match="free"):
        device.empty((part,), DType.UINT8)
    assert tuple(first.shape) == (part,)


def test_the_machine_is_described_by_proc() -> None:
    caps = CpuDevice().capabilities
    assert caps.arch == host.processor_arch(host.processor())
    assert not caps.is_accelerator


def test_the_null_device_offers_kernels_nothing() -> None:
    caps = NullDevice().capabilities
    assert (caps.vendor, caps.features) == ("null", frozenset())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HIP out of memory. Tried to allocate 2 GiB", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("Trying to create tensor with negative dimension", False),
    ],
)
def test_only_refused_memory_counts_as_out_of_memory(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is expected
