"""Why a kernel in C++ is taken or not: every reason before anything is compiled, none a crash."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from hal.device import Capabilities
from hal.dtypes import DType
from hal.kernels import register_all
from hal.kernels.rtc import int4_linear
from hal.kernels.rtc.arch import ORDERS, TileOrder
from hal.kernels.rtc.int4_linear import functions, plan_launch
from hal.opset import linear
from hal.opset.linear import LinearProblem
from hal.profiles import find_profile
from hal.select import SelectionPolicy, Selector
from hal.weights import WEIGHT_FORMATS, WeightFormat

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
        ({}, "sm_70", "is compiled and checked for archs"),
        ({}, "x86_avx2", "is written for devices of nvidia, amd"),
        ({}, "h100", "could run; triton is preferred"),
    ],
)
def test_int4_says_why_not(changes: dict[str, object], profile: str, said: str) -> None:
    problem = replace(PROBLEM, **changes)  # type: ignore[arg-type]  # fields of it
    assert said in reason_against("mma_int4", problem, caps_of(profile))


@pytest.mark.parametrize(("kernel", "weights"), [("mma_int4", PROBLEM.weights), ("gemv", None)])
@pytest.mark.parametrize("profile", ["h100", "a100", "b200", "mi300x", "mi250x", "gfx1100"])
def test_a_user_can_ask_for_it(kernel: str, weights: WeightFormat | None, profile: str) -> None:
    policy = SelectionPolicy(overrides={"linear": kernel})
    selector = Selector(caps_of(profile), policy, is_present=False)
    assert selector.select(linear, replace(PROBLEM, weights=weights)).kernel.name == kernel


@pytest.mark.parametrize(
    ("changes", "profile", "said"),
    [
        ({}, "h100", "stores weights in bfloat16"),
        ({"weights": None, "dtype": DType.FLOAT32}, "h100", "computes on bfloat16, float16"),
        ({"weights": None, "in_features": 4100}, "h100", "no multiple of 8"),
        ({"weights": None}, "sm_70", "is compiled and checked for archs"),
        ({"weights": None}, "h100", "torch is preferred"),
    ],
)
def test_gemv_says_why_not(changes: dict[str, object], profile: str, said: str) -> None:
    problem = replace(PROBLEM, **changes)  # type: ignore[arg-type]  # fields of it
    assert said in reason_against("gemv", problem, caps_of(profile))


@pytest.mark.parametrize("kernel", ["mma_int4", "gemv"])
def test_without_cupy_it_is_not_available(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    int4_linear.unavailable.cache_clear()
    try:
        assert "pip install cupy-cuda13x" in (linear.kernels[kernel].traits.unavailable() or "")
    finally:
        int4_linear.unavailable.cache_clear()


def test_without_a_driver_the_first_product_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever CuPy or torch raise there is a reason, not a crash."""
    monkeypatch.setattr("hal.kernels.rtc.predicates.find_spec", lambda name: "there")
    int4_linear.unavailable.cache_clear()
    try:
        reason = linear.kernels["mma_int4"].traits.unavailable()
    finally:
        int4_linear.unavailable.cache_clear()
    if torch.cuda.is_available():
        pytest.skip("a device is there")
    assert reason is not None and reason.startswith("a first product failed: ")


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
