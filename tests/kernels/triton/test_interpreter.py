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

from hal.conformance.attention_cases import AttentionCase
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.limits import LIMITS
from hal.conformance.moe_cases import GroupedLinearCase
from hal.conformance.quantized_cases import QuantizedLinearCase, WideLinearCase
from hal.conformance.run import Record
from hal.kernels import register_all
from hal.kernels.triton.program import is_installed
from hal.opset.linear import LinearProblem
from hal.opset.moe import GroupedLinearProblem
from hal.select import OPS
from hal.weights import WEIGHT_FORMATS

register_all()

pytestmark = pytest.mark.skipif(not is_installed(), reason="triton is not installed")

# One device of each width of warps or wavefronts.
PROFILES = ("h100", "mi300x")
# 8,000 programs. It shows what noise is like, and its bits are those of the other rows.
TOO_LONG = {("sample", "distribution-float32")}
FORMATS = list(WEIGHT_FORMATS.values())
# Those that are programs of their own.
FORMATS_OF_EXPERTS = ("None", "int8", "int8-a16", "fp8", "int4", "int4-g128-asym-a16")
CACHES_OF_CODES = (
    *("mixed-kv-int8-float32", "decode-kv-int8-bfloat16", "prefill-kv-int8-float16"),
    *("dim-80-kv-int8-bfloat16", "block-8-decode-kv-int8-float16", "groups-of-3-kv-int8-float32"),
    *("window-8-kv-int8-bfloat16", "lengths-apart-kv-int8-float16"),
    *("mixed-kv-fp8-bfloat16", "dim-80-kv-fp8-float32", "lengths-apart-kv-fp8-float16"),
)


def is_chosen(case: Case) -> bool:
    """Of a weight of codes each format and dtype meets one shape, and every shape several; a cache
    of codes, which is read by the same program as one of floats, meets each dtype in turn."""
    if isinstance(case, WideLinearCase):
        return False  # slow, and nothing new: its tiles are those of the narrow ones
    if isinstance(case, AttentionCase) and case.problem.holds_codes:
        return case.label in CACHES_OF_CODES
    if isinstance(case, GroupedLinearCase) and str(case.problem.weights) not in FORMATS_OF_EXPERTS:
        return False
    if isinstance(case, QuantizedLinearCase):
        return shape_of(case.problem) == SHAPES_OF_CODES[number_of(case) % len(SHAPES_OF_CODES)]
    if isinstance(case, GroupedLinearCase) and case.problem.weights is not None:
        return shape_of(case.problem) == SHAPES_OF_EXPERTS[number_of(case) % len(SHAPES_OF_EXPERTS)]
    return (case.op, case.label) not in TOO_LONG


def number_of(case: QuantizedLinearCase | GroupedLinearCase) -> int:
    """Of its format and dtype."""
    assert case.problem.weights is not None
    return FORMATS.index(case.problem.weights) + list(LIMITS).index(case.dtype)


def shape_of(problem: LinearProblem | GroupedLinearProblem) -> tuple[int, int]:
    return (problem.in_features, problem.out_features)


SHAPES_OF_CODES = list(
    dict.fromkeys(
        shape_of(case.problem)
        for case in cases_by_op()["linear"]
        if isinstance(case, QuantizedLinearCase) and not isinstance(case, WideLinearCase)
    )
)
SHAPES_OF_EXPERTS = list(
    dict.fromkeys(
        shape_of(case.problem)
        for case in cases_by_op()["grouped_linear"]
        if isinstance(case, GroupedLinearCase)
    )
)
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
    ours = [item for item in request.session.items if item.path == request.path]
    wanted = [item.callspec.params for item in ours if hasattr(item, "callspec")]
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
