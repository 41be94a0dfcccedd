"""Every registered kernel on every case of its op. A new kernel is a new row by itself."""

from __future__ import annotations

import pytest
from _pytest.mark.structures import ParameterSet

from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.run import conform
from hal.device import Device
from hal.kernels import register_all
from hal.select import OPS, Kernel

register_all()


def row(op: str, kernel: Kernel, case: Case) -> ParameterSet:
    is_native = kernel.implementation.__module__.startswith("hal.kernels.cpu.")
    marks = (pytest.mark.native,) if is_native else ()
    return pytest.param(kernel, case, id=f"{op}-{kernel.name}-{case.label}", marks=marks)


TABLE = [
    row(op.name, kernel, case)
    for op in OPS.values()
    for kernel in op.kernels.values()
    for case in cases_by_op().get(op.name, ())
]


@pytest.mark.parametrize(("kernel", "case"), TABLE)
def test_kernel_computes_what_its_op_says(kernel: Kernel, case: Case, device: Device) -> None:
    record = conform(kernel, case, device)
    if record.skipped:
        pytest.skip(f"{kernel.op} {kernel.name}: {record.skipped}")
    assert record.has_passed, str(record)


@pytest.mark.parametrize("op", sorted(OPS))
def test_op_has_cases_and_a_kernel(op: str) -> None:
    assert cases_by_op().get(op), f"op {op} has no conformance case"
    assert OPS[op].kernels, f"op {op} has no kernel"


def test_case_labels_are_distinct() -> None:
    for op, cases in cases_by_op().items():
        labels = [case.label for case in cases]
        assert len(set(labels)) == len(labels), f"{op} has two cases of one name"
