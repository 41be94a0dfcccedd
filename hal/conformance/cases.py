"""The table: every case of every op."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from hal.conformance.attention_cases import attention_cases
from hal.conformance.block_cases import block_cases
from hal.conformance.case import Case
from hal.conformance.indexing_cases import indexing_cases
from hal.conformance.linear_cases import linear_cases, vocab_cases
from hal.conformance.moe_cases import moe_cases
from hal.conformance.quantized_cases import quantized_cases
from hal.conformance.rope_cases import rope_cases
from hal.conformance.row_cases import elementwise_cases, norm_cases
from hal.conformance.sampling_table import (
    adjust_cases,
    logprobs_cases,
    mask_cases,
    sampling_cases,
)


def all_cases() -> Iterator[Case]:
    yield from linear_cases()
    yield from vocab_cases()
    yield from quantized_cases()
    yield from norm_cases()
    yield from elementwise_cases()
    yield from indexing_cases()
    yield from rope_cases()
    yield from attention_cases()
    yield from block_cases()
    yield from moe_cases()
    yield from sampling_cases()
    yield from adjust_cases()
    yield from mask_cases()
    yield from logprobs_cases()


@cache
def cases_by_op() -> dict[str, tuple[Case, ...]]:
    """Cases of each op; an op without any is missing here, and a failure in the test."""
    table: dict[str, list[Case]] = defaultdict(list)
    for case in all_cases():
        table[case.op].append(case)
    return {op: tuple(cases) for op, cases in table.items()}
