"""The C++ kernels on every case of their op, each thread of a GPU a fibre of the host.

Source, packing and launches are those of a GPU, and matrix instructions are done in plain C++ with
registers as the vendor's manual lays them out. That says nothing about races, or what a vendor's
compiler makes of the source: that is what test_compiles.py, and in the end a device, are for.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated_gpu import COMPILER, HostRuntime
from triton_interpreter import posed_device

from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.run import conform
from hal.kernels import register_all
from hal.kernels.rtc.program import using
from hal.select import OPS, Kernel

register_all()

pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler for the emulation")

PROFILES = ("h100",)  # one of each order in which lanes hold a tile
KERNELS = [
    kernel
    for op in OPS.values()
    for kernel in op.kernels.values()
    if kernel.implementation.__module__.startswith("hal.kernels.rtc.")
]
ROWS = [
    pytest.param(kernel, case, profile, id=f"{profile}-{kernel.op}-{kernel.name}-{case.label}")
    for profile in PROFILES
    for kernel in KERNELS
    for case in cases_by_op()[kernel.op]
    if kernel.traits.rejects(posed_device(profile).capabilities, case.problem) is None
]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with using(HostRuntime(tmp_path_factory.mktemp("emulated"))):
        yield


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(("kernel", "case", "profile"), ROWS)
def test_kernel_computes_what_its_op_says(kernel: Kernel, case: Case, profile: str) -> None:
    record = conform(kernel, case, posed_device(profile))
    assert record.has_passed, str(record)
