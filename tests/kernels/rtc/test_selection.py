"""Why a kernel in C++ is taken or not: every reason before anything is compiled, none a crash."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels import register_all
from hal.kernels.rtc import int4_linear
from hal.kernels.rtc.arch import ORDERS, TileOrder
from hal.kernels.rtc.int4_linear import functions, plan_launch
from hal.kernels.rtc.predicates import no_runtime
from hal.opset import linear
from hal.opset.linear import LinearProblem
from hal.profiles import find_profile
from hal.select import SelectionPolicy, Selector
from hal.weights import WEIGHT_FORMATS

register_all()

PROBLEM = LinearProblem(
    in_features=4096,
    out_features=4096,
    dtype=DType.BFLOAT16,
    weights=WEIGHT_FORMATS["int4-g128-a16"],
)


def caps_of(name: str) -> Capabilities:
    return find_profile(name).capabilities()


def reason_against(kernel: str, problem: LinearProblem, caps: Capabilities) -> str:
    selection = Selector(caps, is_present=False).select(linear, problem)
    (rejection,) = (r for r in selection.rejected if r.kernel == kernel)
    return str(rejection.rule) + ": " + rejection.reason


@pytest.mark.parametrize(
    ("changes", "profile", "said"),
    [
        ({"weights": WEIGHT_FORMATS["int8-a16"]}, "h100", "decodes int4"),
        ({"weights": WEIGHT_FORMATS["int4"]}, "h100", "keeps activations"),
        ({"weights": None}, "h100", "stores quantized weights"),
        ({"dtype": DType.FLOAT32}, "h100", "computes on bfloat16, float16"),
        ({"in_features": 4100}, "h100", "4100 columns are no multiple of 8"),
        ({}, "v100", "is compiled and checked for archs"),
        ({}, "cpu", "is written for devices of nvidia, amd"),
        ({}, "h100", "could run; triton is preferred"),
    ],
)
def test_int4_says_why_not(changes: dict[str, object], profile: str, said: str) -> None:
    name = {"cpu": "x86_avx2", "v100": "sm_70"}.get(profile, profile)
    problem = replace(PROBLEM, **changes)  # type: ignore[arg-type]
    assert said in reason_against("mma_int4", problem, caps_of(name))


def test_a_user_can_ask_for_it() -> None:
    policy = SelectionPolicy(overrides={"linear": "mma_int4"})
    selector = Selector(caps_of("h100"), policy, is_present=False)
    assert selector.select(linear, PROBLEM).kernel.name == "mma_int4"


def test_without_cupy_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    unavailable = linear.kernels["mma_int4"].traits.unavailable
    for cached in (no_runtime, int4_linear.unavailable):
        cached.cache_clear()
    try:
        assert "pip install cupy-cuda13x" in (unavailable() or "")
    finally:
        for cached in (no_runtime, int4_linear.unavailable):
            cached.cache_clear()


@pytest.mark.parametrize("compute_units", [1, 132, 304])
@pytest.mark.parametrize("order", dict.fromkeys(ORDERS.values()), ids=lambda order: order.header)
def test_a_launch_covers_all_tokens_and_rows(order: TileOrder, compute_units: int) -> None:
    for num_tokens in (1, 8, 9, 16, 17, 32, 33, 64, 65, 1000):
        for num_tiles in (1, 2, 3, 64, 257):
            launch = plan_launch(num_tokens, num_tiles, order, compute_units)
            assert launch.function in functions(order)
            tiles, rows = (int(part[1:]) for part in launch.function.split("_")[1:])
            tokens = tiles * order.tokens
            assert launch.grid[0] * rows >= num_tiles > (launch.grid[0] - 1) * rows
            assert launch.grid[1] * tokens >= num_tokens > (launch.grid[1] - 1) * tokens
