"""What every device promises the engine, whatever stands behind it."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from recorded_accelerator import H100, MI300X, RecordedAccelerator

import hal.kernels
from hal.device import DEVICE_INTERFACE_VERSION, Device, Feature
from hal.devices import cuda, open_device, rocm
from hal.devices.cpu import CpuDevice
from hal.devices.null import NullDevice
from hal.devices.torch_accelerator import TorchAccelerator
from hal.dtypes import DType
from hal.errors import DeviceOutOfMemory, UnsupportedError

STORED_DTYPES = [d for d in DType if d is not DType.INT4]


def _recorded(name: str) -> Device:
    vendor, card = (cuda, H100) if name == "cuda" else (rocm, MI300X)
    api = RecordedAccelerator(cards=(card,))
    return TorchAccelerator(vendor.capabilities(card, api.free_bytes, "0.0"), 0, api, "cpu")


@pytest.fixture(params=["cpu", "null", "null:h100", "recorded cuda", "recorded rocm", "--device"])
def device(request: pytest.FixtureRequest, device_name: str) -> Device:
    kind = str(request.param)
    if kind == "cpu":
        return CpuDevice()
    if kind == "null":
        return NullDevice()
    if kind == "null:h100":
        return open_device(kind).device
    if kind == "--device":
        return open_device(device_name).device
    return _recorded(kind.removeprefix("recorded "))


def test_capabilities_are_filled(device: Device) -> None:
    caps = device.capabilities
    assert caps.vendor and caps.name and caps.arch
    assert caps.compute_units >= 1 and caps.simd_width >= 1
    assert 0 < caps.memory.available_bytes <= caps.memory.total_bytes
    assert device.interface_version == DEVICE_INTERFACE_VERSION


def test_free_bytes_are_within_the_device(device: Device) -> None:
    assert 0 < device.free_bytes() <= device.capabilities.memory.total_bytes


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_empty_has_the_shape_and_size_of_its_dtype(device: Device, dtype: DType) -> None:
    x = device.empty((3, 5), dtype)
    assert tuple(x.shape) == (3, 5)
    assert device.allocated_bytes() == dtype.num_bytes(15)


def test_packed_int4_has_no_tensor(device: Device) -> None:
    with pytest.raises(UnsupportedError, match="int4"):
        device.empty((2,), DType.INT4)


def test_allocated_bytes_follow_the_memory_not_the_name(device: Device) -> None:
    x = device.empty((4, 8), DType.FLOAT32)
    y = device.empty((16,), DType.INT32)
    assert device.allocated_bytes() == 128 + 64
    rows = x[1:2]
    del x, y
    gc.collect()
    assert device.allocated_bytes() == 128  # the rows keep the whole tensor's memory
    del rows
    gc.collect()
    assert device.allocated_bytes() == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "uint8", "bool"])
def test_upload_and_download_keep_every_value(device: Device, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    x = device.upload(values)
    assert tuple(x.shape) == (2, 3, 4)
    np.testing.assert_array_equal(device.download(x), values)
    np.testing.assert_array_equal(device.download(x[1:]), values[1:])
    assert device.download(x).dtype == values.dtype


def test_upload_takes_read_only_and_strided_arrays(device: Device) -> None:
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    values.flags.writeable = False
    for view in (values, values[:, 1], values[::-1], values[:0]):
        np.testing.assert_array_equal(device.download(device.upload(view)), view)


@pytest.mark.parametrize(
    "dtype", [DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E4M3FNUZ, DType.FLOAT8_E5M2]
)
def test_types_that_numpy_lacks_come_back_as_float32(device: Device, dtype: DType) -> None:
    assert device.download(device.empty((2,), dtype)).dtype == np.float32


def test_views_share_memory_with_the_original(device: Device) -> None:
    x = device.upload(np.arange(6, dtype=np.float32))
    first, second = x.view(2, 3).split([1, 1])
    np.testing.assert_array_equal(device.download(first), [[0, 1, 2]])
    np.testing.assert_array_equal(device.download(second), [[3, 4, 5]])


def test_work_can_be_waited_for(device: Device) -> None:
    x = device.upload(np.ones(3, dtype=np.float32))
    device.record().wait()
    device.synchronize()
    np.testing.assert_array_equal(device.download(x), [1, 1, 1])


def test_host_memory_has_the_shape_of_its_dtype_and_is_no_memory_of_a_card(device: Device) -> None:
    x = device.empty_host((3, 4), DType.BFLOAT16)
    assert tuple(x.shape) == (3, 4)
    is_own = isinstance(device, CpuDevice)
    assert device.allocated_bytes() == (24 if is_own else 0)
    with pytest.raises(DeviceOutOfMemory, match="no room for a tensor"):
        device.empty_host((1 << 50,), DType.INT8)


def test_an_upload_into_a_tensor_keeps_its_memory(device: Device) -> None:
    whole = device.empty((4, 2), DType.INT32)
    device.upload(np.zeros((4, 2), np.int32), into=whole)
    host = np.arange(4, dtype=np.int32).reshape(2, 2)
    rows = whole[1:3]
    assert device.upload(host, into=rows) is rows
    device.synchronize()
    host[:] = -1  # a copy was taken
    np.testing.assert_array_equal(device.download(whole), [[0, 0], [0, 1], [2, 3], [0, 0]])
    assert device.allocated_bytes() == 32


def test_capture_replays_or_says_why_not(device: Device) -> None:
    hal.kernels.register_all()  # a host records what its kernels launch
    ran: list[int] = []
    if Feature.GRAPHS in device.capabilities.features:
        device.capture(lambda: ran.append(1))()
        assert ran == [1]
    else:
        with pytest.raises(UnsupportedError, match="--enforce-eager"):
            device.capture(lambda: ran.append(1))
        assert ran == []


def test_the_collective_of_one_rank_changes_nothing(device: Device) -> None:
    group = device.collective()
    x = device.upload(np.arange(4, dtype=np.float32))
    group.all_reduce(x)
    group.broadcast(x)
    group.all_gather(x, x)
    group.check()
    assert (group.rank, group.size, group.num_bytes) == (0, 1, 0)
    np.testing.assert_array_equal(device.download(x), [0, 1, 2, 3])


def test_an_allocation_beyond_the_device_is_a_typed_error_with_sizes(device: Device) -> None:
    with pytest.raises(DeviceOutOfMemory, match=r"1048576\.00 GiB wanted, .* free, .* held here"):
        device.empty((1 << 50,), DType.UINT8)
    assert device.allocated_bytes() == 0
