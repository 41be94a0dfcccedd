"""OpenCL platforms and devices found through pyopencl: report only until its kernels come.

As a module (`python -m hal.devices.opencl`) it is the child that loads the OpenCL drivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hal.device import Capabilities, Device, Limits, Memory, MemoryKind, Versions
from hal.devices.child import ask, module_command, print_answer
from hal.devices.vendor import Vendor
from hal.errors import UnsupportedError
from hal.report import DeviceReport

_REASON = "not supported yet: running models on OpenCL; hal has no OpenCL kernels"
_REMEDY = "--device auto chooses a device that can run"


class OpenclVendor(Vendor):
    """Lists what the installed OpenCL drivers offer."""

    name = "opencl"
    is_for_auto = False

    def __init__(
        self,
        binding: str = "pyopencl",
        command: Sequence[str] = module_command("hal.devices.opencl"),
    ) -> None:
        self._binding = binding
        self._command = command

    def probe(self) -> tuple[DeviceReport, ...]:
        if find_spec(self._binding) is None:
            reason = f"{self._binding} is not installed, so OpenCL devices cannot be listed"
            return (
                DeviceReport(
                    spec=self.name, reason=reason, remedy="pip install 'hal-runtime[opencl]'"
                ),
            )
        answer = ask(self._command)
        if answer.failure:
            return (DeviceReport(spec=self.name, reason=answer.failure),)
        nothing = DeviceReport(
            spec=self.name,
            reason="no OpenCL driver lists a device",
            remedy="install one, e.g. apt-get install pocl-opencl-icd",
        )
        return answer.devices or (nothing,)

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise UnsupportedError(_REASON)


def found_devices(pyopencl: Any) -> list[DeviceReport]:
    """Every device of every platform. `pyopencl` is that module: it ships no types."""
    try:
        platforms = pyopencl.get_platforms()
    except pyopencl.LogicError:  # "no platform found" is an error to the OpenCL loader
        return []
    reports = []
    for platform_index, platform in enumerate(platforms):
        for index, device in enumerate(platform.get_devices()):
            reports.append(
                DeviceReport(
                    spec=f"opencl:{platform_index}.{index}",
                    capabilities=_capabilities(platform, device),
                    reason=_REASON,
                    remedy=_REMEDY,
                )
            )
    return reports


def _capabilities(platform: Any, device: Any) -> Capabilities:
    kind = MemoryKind.UNIFIED if device.host_unified_memory else MemoryKind.DEDICATED
    return Capabilities(
        vendor=device.vendor.strip(),
        name=f"{device.name.strip()} ({platform.name.strip()})",
        arch=device.version.strip(),
        memory=Memory(
            kind=kind,
            total_bytes=int(device.global_mem_size),
            available_bytes=int(device.global_mem_size),
        ),
        compute_units=int(device.max_compute_units),
        simd_width=int(device.preferred_vector_width_float),
        features=frozenset(),
        is_accelerator=False,
        limits=Limits(
            shared_memory_bytes=int(device.local_mem_size),
            max_threads_per_block=int(device.max_work_group_size),
        ),
        versions=Versions(driver=device.driver_version.strip(), runtime=platform.version.strip()),
    )


if __name__ == "__main__":
    print_answer(found_devices(import_module("pyopencl")))
