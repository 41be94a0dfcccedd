"""What a step costs besides its work: barriers, and memory once it is warm."""

from __future__ import annotations

import resource

import pytest
import torch

from hal import LLM, SamplingParams
from hal.conformance.stage import Stage, logical
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.block import FusedMlpBlock
from hal.kernels.cpu.linear import PackedLinear
from hal.opset.block import MlpBlockProblem
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.weights import WEIGHT_FORMATS

HIDDEN, WIDE = 256, 4096
FORMATS = [None, WEIGHT_FORMATS["int4"], WEIGHT_FORMATS["int8"]]
NAMES = ["bf16", "int4", "int8"]


def fill(stage: Stage, *families: LinearFamily) -> None:
    for family in families:
        shape = (family.problem.out_features, family.problem.in_features)
        family.allocate(stage.device)
        family.load(0, logical(torch.zeros(shape).bfloat16(), DType.BFLOAT16))
    stage.binder.arena.allocate(stage.device)


def linear(stage: Stage, index: int) -> PackedLinear:
    problem = LinearProblem(
        in_features=HIDDEN, out_features=WIDE, dtype=DType.BFLOAT16, weights=FORMATS[index]
    )
    family = PackedLinear(problem, stage.binder)
    fill(stage, family)
    return family


def mlp(stage: Stage, index: int) -> FusedMlpBlock:
    problem = MlpBlockProblem(
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        activation=Activation.SILU,
        is_gated=True,
        has_bias=False,
        dtype=DType.BFLOAT16,
        weights=FORMATS[index],
    )
    block = FusedMlpBlock(problem, stage.binder)
    fill(stage, block.up, block.down)
    return block


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is alone waits for nobody."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def barriers_of(run: PackedLinear | FusedMlpBlock, num_tokens: int, width: int) -> int:
    x = torch.zeros(num_tokens, HIDDEN, dtype=torch.bfloat16)
    out = torch.empty(num_tokens, width, dtype=torch.bfloat16)
    before = native.load().num_barriers()
    run(x, out)
    return int(native.load().num_barriers() - before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("index", range(3), ids=NAMES)
def test_one_token_costs_one_barrier_in_a_product_and_two_in_an_mlp(
    stage: Stage, index: int
) -> None:
    assert barriers_of(linear(stage, index), 1, WIDE) == 1
    assert barriers_of(mlp(stage, index), 1, HIDDEN) == 2


@pytest.mark.usefixtures("two_threads")
def test_many_tokens_cost_one_more_where_they_are_rounded(stage: Stage) -> None:
    """Few values (8192) are rounded by the calling thread alone."""
    assert [barriers_of(linear(stage, 1), m, WIDE) for m in (32, 33)] == [1, 2]
    assert [barriers_of(mlp(stage, 1), m, HIDDEN) for m in (2, 3, 33)] == [2, 3, 4]
    assert [barriers_of(mlp(stage, 0), m, HIDDEN) for m in (2, 3, 33)] == [2, 2, 2]


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_a_warm_step_takes_no_memory(request: pytest.FixtureRequest, quantization: str) -> None:
    """Page faults show what the kernel had to hand out; torch and Python reuse what they freed."""
    if request.config.getoption("--native-module"):
        pytest.skip("with sanitizers, scratch is allocated to the byte at every call")
    num_steps = 100
    llm = LLM(
        "hal-tiny",
        device="cpu",
        dtype="bfloat16",
        quantization=quantization,
        max_num_seqs=1,
        max_model_len=num_steps + 28,  # one run touches every block of a pool this small
    )
    params = SamplingParams(temperature=0.0, max_tokens=num_steps, ignore_eos=True)

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    for _ in range(3):
        llm.generate(["The"], params, use_tqdm=False)
    scratch, before = native.load().num_scratch_allocations(), faults()
    llm.generate(["The"], params, use_tqdm=False)
    assert native.load().num_scratch_allocations() == scratch
    assert faults() - before < num_steps // 4, "a step touches new pages"
