"""The OpenCL report, against a recorded pyopencl."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from hal.devices.opencl import OpenclVendor, found_devices


class LogicError(Exception):
    """pyopencl's."""


DEVICE = SimpleNamespace(
    name="Arc A770 ",
    vendor="Intel(R) Corporation",
    version="OpenCL 3.0 NEO",
    driver_version="23.17",
    host_unified_memory=0,
    global_mem_size=16 << 30,
    local_mem_size=65536,
    max_compute_units=512,
    max_work_group_size=1024,
    preferred_vector_width_float=1,
)


def _pyopencl(*devices: SimpleNamespace) -> SimpleNamespace:
    platform = SimpleNamespace(
        name="Intel OpenCL", version="OpenCL 3.0", get_devices=lambda: list(devices)
    )
    return SimpleNamespace(LogicError=LogicError, get_platforms=lambda: [platform])


def test_devices_are_listed_with_the_reason_they_cannot_run() -> None:
    (report,) = found_devices(_pyopencl(DEVICE))
    caps = report.capabilities
    assert caps is not None and not report.is_usable
    assert (report.spec, caps.name) == ("opencl:0.0", "Arc A770 (Intel OpenCL)")
    assert caps.memory.total_bytes == 16 << 30
    assert report.reason.startswith("not supported yet: running models on OpenCL")


def test_no_platform_is_an_empty_list() -> None:
    def no_platforms() -> list[object]:
        raise LogicError("PLATFORM_NOT_FOUND_KHR")

    assert found_devices(SimpleNamespace(LogicError=LogicError, get_platforms=no_platforms)) == []


def test_without_the_binding_the_report_says_how_to_get_it() -> None:
    (report,) = OpenclVendor(binding="no_such_binding").probe()
    assert report.reason.startswith("no_such_binding is not installed")
    assert report.remedy == "pip install 'hal-runtime[opencl]'"


def test_no_driver_and_a_crashing_driver() -> None:
    nothing = (sys.executable, "-c", "print('hal-devices:[]')")
    (report,) = OpenclVendor(binding="json", command=nothing).probe()
    assert report.reason == "no OpenCL driver lists a device"
    crash = (sys.executable, "-c", "import os; os.abort()")
    (report,) = OpenclVendor(binding="json", command=crash).probe()
    assert "SIGABRT" in report.reason
