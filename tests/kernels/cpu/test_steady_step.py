"""What a step costs besides its work: barriers, and memory once it is warm."""

from __future__ import annotations

import resource

import pytest
import torch

from hal import LLM, SamplingParams
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.stage import Stage, logical
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.attention_block import FusedAttentionBlock
from hal.kernels.cpu.block import FusedMlpBlock
from hal.kernels.cpu.linear import PackedLinear
from hal.opset.attention import AttentionProblem, AttentionSpec, RopeProblem
from hal.opset.block import AttentionBlockProblem, AttentionWeights, MlpBlockProblem
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.norm import NormInput, NormKind
from hal.weights import WEIGHT_FORMATS

HIDDEN, WIDE = 256, 4096
FORMATS = ["none", "int8", "int4", "int4-a16"]


def fill(stage: Stage, *families: LinearFamily) -> None:
    for family in families:
        shape = (family.problem.out_features, family.problem.in_features)
        family.allocate(stage.device)
        family.load(0, logical(torch.zeros(shape).bfloat16(), DType.BFLOAT16))
    stage.binder.arena.allocate(stage.device)


def linear(stage: Stage, name: str) -> PackedLinear:
    problem = LinearProblem(
        in_features=HIDDEN,
        out_features=WIDE,
        dtype=DType.BFLOAT16,
        weights=WEIGHT_FORMATS.get(name),
    )
    family = PackedLinear(problem, stage.binder)
    fill(stage, family)
    return family


def mlp(stage: Stage, name: str) -> FusedMlpBlock:
    problem = MlpBlockProblem(
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        activation=Activation.SILU,
        is_gated=True,
        has_bias=False,
        dtype=DType.BFLOAT16,
        weights=WEIGHT_FORMATS.get(name),
        norm=NormKind.RMS,
    )
    block = FusedMlpBlock(problem, stage.binder)
    fill(stage, block.up, block.down)
    return block


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is alone waits for nobody."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def normed(num_tokens: int) -> NormInput:
    rows = torch.zeros(2, num_tokens, HIDDEN, dtype=torch.bfloat16)
    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    return NormInput(values=rows[0], residual=rows[1], weight=ones, bias=None, eps=1e-6)


def barriers_of(
    stage: Stage, run: PackedLinear | FusedMlpBlock, num_tokens: int, width: int, norm: bool = False
) -> int:
    stage.binder.arena.allocate(stage.device)
    x = torch.zeros(num_tokens, HIDDEN, dtype=torch.bfloat16)
    out = torch.empty(num_tokens, width, dtype=torch.bfloat16)
    arguments = (normed(num_tokens),) if norm else ()
    before = native.load().num_barriers()
    run(x, out, *arguments)
    return int(native.load().num_barriers() - before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("num_tokens", [1, 8, 64, 512])
@pytest.mark.parametrize("name", FORMATS)
def test_a_product_costs_one_barrier(stage: Stage, name: str, num_tokens: int) -> None:
    """x is normed and rounded inside it."""
    assert barriers_of(stage, linear(stage, name), num_tokens, WIDE) == 1
    assert barriers_of(stage, mlp(stage, name), num_tokens, HIDDEN) == 2
    assert barriers_of(stage, mlp(stage, name), num_tokens, HIDDEN, norm=True) == 2


def attention(stage: Stage, name: str) -> FusedAttentionBlock:
    num_heads, num_kv_heads, head_dim = 4, 2, 64
    shape = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    spec = AttentionSpec(scale=head_dim**-0.5)
    problem = AttentionBlockProblem(
        hidden_size=HIDDEN,
        attention=AttentionProblem(dtype=DType.BFLOAT16, block_size=16, spec=spec, **shape),
        rope=RopeProblem(rotary_dim=head_dim, has_norm=False, dtype=DType.BFLOAT16, **shape),
        has_qkv_bias=False,
        has_output_bias=False,
        weights=WEIGHT_FORMATS.get(name),
        norm=NormKind.RMS,
    )
    block = FusedAttentionBlock(problem, stage.binder)
    fill(stage, block.qkv, block.output)
    return block


# New tokens and context of each sequence: decode, one prompt, prompts beside long contexts.
STEPS = {
    "one": [SequenceStep(1, 40)],
    "long": [SequenceStep(1, 600)],
    "decode-8": [SequenceStep(1, 40)] * 8,
    "decode-64": [SequenceStep(1, 40)] * 64,
    "prompt-64": [SequenceStep(64, 64)],
    "prompt-512": [SequenceStep(512, 512)],
    "mixed": [SequenceStep(1, 600), SequenceStep(300, 300), SequenceStep(1, 40)],
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", STEPS)
def test_a_layer_costs_five_barriers_and_one_more_for_long_contexts(
    stage: Stage, name: str, case: str
) -> None:
    steps, block = STEPS[case], attention(stage, name)
    cache = PagedCache(stage, block.family, block.family.problem, [step.seq_len for step in steps])
    cache.plan(steps, list(range(len(steps))))
    starts = [(step.seq_len - step.q_len, step.seq_len) for step in steps]
    positions = torch.cat([torch.arange(*start, dtype=torch.int32) for start in starts])
    num_tokens = len(positions)
    weights = AttentionWeights(
        cos_sin=torch.zeros(600, 64), q_norm=None, k_norm=None, norm_eps=1e-6
    )
    x = torch.zeros(num_tokens, HIDDEN, dtype=torch.bfloat16)
    out = torch.empty(num_tokens, HIDDEN, dtype=torch.bfloat16)
    before = native.load().num_barriers()
    block(x, positions, cache.kv, weights, out, normed(num_tokens))
    spent = int(native.load().num_barriers() - before)
    spent += barriers_of(stage, mlp(stage, name), num_tokens, HIDDEN, norm=True)
    assert spent == (6 if max(step.seq_len for step in steps) > 512 else 5)


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
