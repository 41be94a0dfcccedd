"""Every Triton kernel on every case of its op, interpreted on CPU tensors against the oracle.

The interpreter checks indexing, masks and arithmetic. It runs one program after another on whole
blocks, so it says nothing about layouts, races, or what a compiler makes of the source: that is
what the compile matrix, and in the end a device, are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from triton_interpreter import interpreters, submit_case

from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.limits import LIMITS
from hal.conformance.quantized_cases import QuantizedLinearCase, WideLinearCase
from hal.conformance.run import Record
from hal.kernels import register_all
from hal.kernels.triton.program import is_installed
from hal.select import OPS
from hal.weights import WEIGHT_FORMATS

register_all()

pytestmark = pytest.mark.skipif(not is_installed(), reason="triton is not installed")

# One device of each width of warps or wavefronts.
PROFILES = ("h100", "mi300x")
# 8,000 programs. It shows what noise is like, and its bits are those of the other rows.
TOO_LONG = {("sample", "distribution-float32")}
FORMATS = list(WEIGHT_FORMATS.values())
SHAPES_OF_CODES = list(
    dict.fromkeys(
        (case.problem.in_features, case.problem.out_features)
        for case in cases_by_op()["linear"]
        if isinstance(case, QuantizedLinearCase) and not isinstance(case, WideLinearCase)
    )
)


def is_chosen(case: Case) -> bool:
    """Of a weight of codes each format and dtype meets one shape, and every shape several."""
    if isinstance(case, WideLinearCase):
        return False  # slow, and nothing new: its tiles are those of the narrow ones
    if isinstance(case, QuantizedLinearCase):
        assert case.problem.weights is not None
        number = FORMATS.index(case.problem.weights) + list(LIMITS).index(case.dtype)
        shape = (case.problem.in_features, case.problem.out_features)
        return shape == SHAPES_OF_CODES[number % len(SHAPES_OF_CODES)]
    return (case.op, case.label) not in TOO_LONG


ROWS = [
    (op.name, case.label, PROFILES[number // 2 % 2])
    for op in OPS.values()
    if "triton" in op.kernels
    for number, case in enumerate(cases_by_op()[op.name])
    if is_chosen(case)
]
Records = dict[tuple[str, str], Future[Record]]


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Iterator[Records]:
    """All rows that this session selected, under way in other processes."""
    wanted = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = {(p["op"], p["case"], p["profile"]) for p in wanted if "profile" in p}
    with interpreters() as pool:
        rows = [row for row in ROWS if row in chosen]
        yield {(op, case): submit_case(pool, op, case, profile) for op, case, profile in rows}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("op", "case", "profile"), ROWS)
def test_kernel_computes_what_its_op_says(
    op: str, case: str, profile: str, records: Records
) -> None:
    record = records[op, case].result(timeout=120)
    if record.skipped:
        pytest.skip(f"{op} triton on {profile}: {record.skipped}")
    assert record.has_passed, str(record)
