"""Rows of selections: one text for reports and errors, every fact of the selection in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hal import evidence, opset
from hal.device import Capabilities, Feature
from hal.dtypes import DType
from hal.evidence import Evidence
from hal.explain import SiteReport, site_reports
from hal.kernels import register_all
from hal.opset.attention import AttentionProblem, AttentionSpec
from hal.opset.indexing import TokenProblem
from hal.opset.linear import LinearProblem
from hal.problem import describe
from hal.profiles import find_profile
from hal.select import Kernel, Level, Selector

register_all()

LINEAR = LinearProblem(in_features=64, out_features=32, dtype=DType.BFLOAT16, has_bias=True)


def proof(arch: str, op: str, kernel: Kernel) -> Evidence:
    return Evidence(evidence.Level.EMULATED, f"{arch}/{op}/{kernel.name}")


def sites_on(caps: Capabilities) -> tuple[SiteReport, ...]:
    selector = Selector(caps, is_present=False)
    for _ in range(3):
        selector.select(opset.linear, LINEAR)
    return site_reports(selector, proof)


def without(caps: Capabilities, *features: Feature) -> Capabilities:
    return replace(caps, features=caps.features - set(features))


def test_a_problem_in_words_says_each_fact_once() -> None:
    attention = AttentionProblem(
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        dtype=DType.FLOAT16,
        block_size=16,
        spec=AttentionSpec(scale=0.125, window=128),
    )
    assert describe(attention) == (
        "num_heads 8, num_kv_heads 2, head_dim 64, float16, block_size 16, scale 0.125, window 128"
    )
    assert describe(LINEAR) == "in_features 64, out_features 32, bfloat16, has_bias"
    assert describe(TokenProblem()) == ""


def test_a_native_choice_has_no_cost_and_its_evidence_is_asked_for() -> None:
    (site,) = sites_on(find_profile("mi300x").capabilities())
    assert (site.kernel, site.level, site.cost) == ("torch", Level.NATIVE, "")
    assert (site.evidence, site.proof) == ("emulated", "gfx942/linear/torch")
    assert site.num_uses == 3


def test_a_card_without_matrix_instructions_of_the_type_upcasts_and_says_what_it_costs() -> None:
    caps = without(find_profile("h100").capabilities(), Feature.BF16_MMA)
    (site,) = sites_on(caps)
    assert (site.kernel, site.level) == ("torch", Level.UPCAST)
    assert "multiplied in float32" in site.cost
    assert site.cost in "\n".join(site.lines())


def test_a_reference_choice_always_has_a_cost() -> None:
    null = replace(find_profile("h100").capabilities(), vendor="null")
    selector = Selector(null, is_present=False)
    selector.select(opset.linear, LINEAR)
    selector.select(opset.take_tokens, TokenProblem())
    linear, take = site_reports(selector, proof)
    assert linear.level is take.level is Level.REFERENCE
    assert "5 x the bytes" in linear.cost
    assert "not fast" in take.cost


def test_the_text_has_every_kernel_rule_observed_value_and_flag() -> None:
    (site,) = sites_on(find_profile("h100").capabilities())
    assert list(site.lines()) == [
        "linear: in_features 64, out_features 32, bfloat16, has_bias  (3 x)",
        "  runs torch [native, evidence: emulated, sm_90/linear/torch]: highest preference that "
        "accepts it",
        *(
            f"  not {name} (cannot run): runs on CPUs only; this is NVIDIA H100 SXM 80 GB (sm_90)"
            for name in (
                *("amx_bf16", "amx_int8", "avx512_bf16", "avx512_decoded", "avx512_vnni"),
                *("avx512f_vnni", "avx512", "neon_dotprod", "avx2_vnni", "avx2", "neon"),
            )
        ),
        "  not triton (cannot run): stores quantized weights; the problem keeps them in bfloat16",
        "  not reference (less preferred): could run; torch is preferred (50 over 0) "
        "-> --kernel linear=reference",
        "  not reference_quantized (cannot run): stores quantized weights; the problem keeps them "
        "in bfloat16",
    ]


def test_regimes_are_shown_where_there_are_several() -> None:
    caps = replace(
        find_profile("h100").capabilities(),
        vendor="x86",
        is_accelerator=False,
        features=frozenset({Feature.AVX512_BF16}),
    )
    (site,) = sites_on(caps)
    assert site.kernel == "avx512_bf16"
    lines = list(site.lines())
    assert lines[2].startswith("    1 to 6 tokens: each panel")
    assert lines[3].startswith("    7 and more tokens: ")


def test_json_carries_the_flag_of_every_rejection() -> None:
    (site,) = sites_on(find_profile("h100").capabilities())
    said = site.as_json()
    rejected = said["rejected"]
    assert isinstance(rejected, list)
    assert [r for r in rejected if r["kernel"] in ("avx512_bf16", "reference")] == [
        {
            "kernel": "avx512_bf16",
            "rule": "cannot run",
            "reason": "runs on CPUs only; this is NVIDIA H100 SXM 80 GB (sm_90)",
            "flag": "",
        },
        {
            "kernel": "reference",
            "rule": "less preferred",
            "reason": "could run; torch is preferred (50 over 0)",
            "flag": "--kernel linear=reference",
        },
    ]
    assert said["regimes"] == [{"first": 1, "last": None, "how": "the same code"}]


@pytest.mark.parametrize("op", sorted(opset.__all__))
def test_every_kernel_that_is_not_native_everywhere_states_a_cost(op: str) -> None:
    from hal.select import OPS

    for kernel in OPS[op].kernels.values():
        if not isinstance(kernel.traits.level, Level):
            assert kernel.traits.cost, f"{op} {kernel.name} may upcast and states no cost"
