"""The C++ kernels on every case of their op, each thread of a GPU a fibre of the host.

Source, packing and launches are those of a GPU, and matrix instructions are done in plain C++ with
registers as the vendor's manual lays them out. That says nothing about races, or what a vendor's
compiler makes of the source: that is what test_compiles.py, and in the end a device, are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from emulated_gpu import COMPILER, HostRuntime
from triton_interpreter import posed_device

from hal.binding import Arena, Binder
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.run import conform
from hal.dtypes import DType
from hal.kernels import register_all
from hal.kernels.rtc.program import using
from hal.opset import linear
from hal.opset.linear import LinearFamily, LinearProblem
from hal.select import OPS, Kernel, Selector
from hal.weights import WEIGHT_FORMATS, LogicalWeight

register_all()

pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler for the emulation")

# One of each order in which lanes hold a tile. What is compiled differs by format and dtype, not
# by order: each of them runs on one, on NVIDIA's more.
PROFILES = ("h100", "mi300x", "gfx1100", "gfx1201", "h100")
KERNELS = [
    kernel
    for op in OPS.values()
    for kernel in op.kernels.values()
    if kernel.implementation.__module__.startswith("hal.kernels.rtc.")
]


@dataclass(frozen=True)
class Row:
    kernel: Kernel
    case: Case
    profile: str

    def __str__(self) -> str:
        return f"{self.profile}-{self.kernel.name}-{self.case.label}"


def rows() -> Iterator[Row]:
    for kernel in KERNELS:
        compiled: dict[object, None] = {}
        for case in cases_by_op()[kernel.op]:
            if kernel.traits.rejects(CAPS["h100"], case.problem) is not None:
                continue
            compiled.setdefault((case.problem.weights, case.dtype))
            number = list(compiled).index((case.problem.weights, case.dtype))
            profile = PROFILES[number % len(PROFILES)]
            yield Row(kernel, case, profile)


CAPS = {profile: posed_device(profile).capabilities for profile in PROFILES}
ROWS = list(rows())


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with using(HostRuntime(tmp_path_factory.mktemp("emulated"))):
        yield


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_kernel_computes_what_its_op_says(row: Row) -> None:
    assert row.kernel.traits.rejects(CAPS[row.profile], row.case.problem) is None
    record = conform(row.kernel, row.case, posed_device(row.profile))
    assert record.has_passed, str(record)


def test_every_order_and_every_format_is_run() -> None:
    ran = {(row.profile, row.kernel.name) for row in ROWS}
    assert {(profile, "mma_int4") for profile in PROFILES} <= ran
    formats = {row.case.problem.weights for row in ROWS}
    assert len(formats) == 1 + 6  # none, and int4 of three groups with and without zeros


@pytest.mark.usefixtures("runtime")
def test_nothing_is_compiled_by_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is recorded by calls: what they need is loaded when memory is taken."""
    device = posed_device("h100")
    binder = Binder(Selector(device.capabilities), Arena(8), device)
    for name, weights in (("mma_int4", WEIGHT_FORMATS["int4-a16"]), ("gemv", None)):
        problem = LinearProblem(
            in_features=64, out_features=16, dtype=DType.BFLOAT16, weights=weights
        )
        family: LinearFamily = linear.kernels[name].bind(problem, binder)
        family.allocate(device)
        weight = torch.ones(16, 64, dtype=torch.bfloat16)
        family.load(0, LogicalWeight(values=weight, dtype=DType.BFLOAT16))
        with monkeypatch.context() as patch:
            patch.setattr(HostRuntime, "load", None)
            for num_tokens in (1, 4, 8):
                x = torch.ones(num_tokens, 64, dtype=torch.bfloat16)
                out = torch.full((num_tokens, 16), torch.nan, dtype=torch.bfloat16)
                family(x, out)
                assert (out == 64).all()
