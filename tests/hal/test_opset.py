"""The op table: complete, importable without torch, and answerable for devices that are absent."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

import hal.opset
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.device import Capabilities, Feature, Limits, Memory, MemoryKind
from hal.dtypes import DType
from hal.errors import SelectionError
from hal.evidence import Evidence
from hal.explain import emulation_ledger, site_reports
from hal.kernels import register_all
from hal.opset.linear import LinearProblem
from hal.select import OPS, Level, SelectionPolicy, Selector
from hal.weights import WEIGHT_FORMATS, WeightFormat

register_all()

_CARD_MEMORY = Memory(kind=MemoryKind.DEDICATED, total_bytes=80 << 30, available_bytes=79 << 30)
H100 = Capabilities(
    vendor="nvidia",
    name="H100",
    arch="sm_90",
    memory=_CARD_MEMORY,
    compute_units=132,
    simd_width=32,
    features=frozenset({Feature.FP16_MMA, Feature.BF16_MMA, Feature.FP8_OCP_MMA, Feature.GRAPHS}),
    is_accelerator=True,
    limits=Limits(shared_memory_bytes=227 << 10, max_threads_per_block=1024),
)
MI300X = dataclasses.replace(
    H100,
    vendor="amd",
    name="MI300X",
    arch="gfx942",
    simd_width=64,
    features=frozenset({Feature.FP16_MMA, Feature.BF16_MMA, Feature.FP8_FNUZ_MMA}),
)
OLD_CPU = dataclasses.replace(
    H100,
    vendor="intel",
    name="an old CPU",
    arch="x86_avx2",
    memory=dataclasses.replace(_CARD_MEMORY, kind=MemoryKind.HOST),
    features=frozenset({Feature.AVX2}),
    is_accelerator=False,
)
POSED = (H100, MI300X, OLD_CPU)

CASES = [case for cases in cases_by_op().values() for case in cases]


def test_the_package_exports_every_op_it_declares() -> None:
    assert set(hal.opset.__all__) == set(OPS)
    for name in hal.opset.__all__:
        assert getattr(hal.opset, name) is OPS[name]


@pytest.mark.parametrize("name", sorted(hal.opset.__all__))
def test_an_op_says_what_it_does_and_its_problem_is_a_frozen_value(name: str) -> None:
    op = OPS[name]
    assert len(op.doc.splitlines()[0]) > 10, f"{name} has no docstring"
    assert dataclasses.is_dataclass(op.problem)
    parameters = op.problem.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert op.problem.__doc__


def test_declarations_need_neither_torch_nor_a_kernel() -> None:
    code = (
        "import sys, hal.opset, hal.kernels\n"
        "from hal.select import OPS\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert not any(op.kernels for op in OPS.values()), 'a kernel registered itself'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_twice_changes_nothing() -> None:
    before = {name: list(op.kernels) for name, op in OPS.items()}
    register_all()
    assert {name: list(op.kernels) for name, op in OPS.items()} == before


@pytest.mark.parametrize("caps", POSED, ids=lambda caps: caps.name)
def test_every_problem_has_a_kernel_and_every_reason_is_a_sentence(caps: Capabilities) -> None:
    selector = Selector(caps, is_present=False)
    for case in CASES:
        selection = selector.select(OPS[case.op], case.problem)
        assert len(selection.rejected) == len(OPS[case.op].kernels) - 1
        for rejection in selection.rejected:
            assert len(rejection.reason) > 10, rejection


def _runs_natively(case: Case) -> bool:
    """What torch itself has for accelerators today: no soft cap in attention, no codes, no experts
    without a look at the host."""
    if case.op in ("grouped_linear", "route_experts", "combine_experts"):
        return False
    if case.op == "attention":
        return case.problem.spec.softcap is None and case.problem.spec.kv_dtype is None
    return case.op not in ("linear", "vocab") or case.problem.weights is None


@pytest.mark.parametrize("caps", [H100, MI300X], ids=lambda caps: caps.name)
def test_strict_finds_a_native_kernel_on_accelerators(caps: Capabilities) -> None:
    selector = Selector(caps, SelectionPolicy(strict=True), is_present=False)
    for case in filter(_runs_natively, CASES):
        level = selector.select(OPS[case.op], case.problem).level
        assert level is Level.NATIVE, case.label


def test_the_null_device_runs_the_specification() -> None:
    null = dataclasses.replace(
        OLD_CPU, vendor="null", name="null device", arch="null", features=frozenset()
    )
    selector = Selector(null, is_present=True)
    for case in CASES:
        kernel = selector.select(OPS[case.op], case.problem).kernel
        allowed = ("reference", "reference_quantized", "composed")
        assert kernel.name in allowed, f"{case.op} {case.label}: {kernel.name}"


def test_float16_on_a_cpu_is_not_given_to_a_slow_product() -> None:
    selector = Selector(OLD_CPU, is_present=False)
    half = [c for c in cases_by_op()["linear"] if c.dtype is DType.FLOAT16]
    assert half
    for case in half:
        selection = selector.select(OPS["linear"], case.problem)
        (torch_reason,) = (r.reason for r in selection.rejected if r.kernel == "torch")
        assert "8x slower than float32 on a CPU (x86_avx2)" in torch_reason


_AVX512 = {Feature.AVX2, Feature.AVX512}
_AVX512_BF16 = {*_AVX512, Feature.AVX512_BF16}
# Formats whose products are dots of codes.
_DOTS = tuple(name for name, f in WEIGHT_FORMATS.items() if not f.keeps_activations)
# What runs products with codes, and which instructions the faster ones miss.
_PRODUCTS_OF: tuple[tuple[set[Feature], str, dict[str, str]], ...] = (
    ({Feature.AMX_INT8}, "reference_quantized", {"avx2": "avx2", "neon": "neon"}),
    ({Feature.AVX2}, "avx2", {"avx512": "avx512", "avx2_vnni": "avx_vnni"}),
    ({Feature.AVX2, Feature.AVX_VNNI}, "avx2_vnni", {"avx512": "avx512"}),
    (_AVX512, "avx512", {"avx512_vnni": "avx512_bf16", "avx512f_vnni": "avx512_vnni"}),
    ({*_AVX512, Feature.AVX512_VNNI}, "avx512f_vnni", {"avx512_vnni": "avx512_bf16"}),
    (_AVX512_BF16, "avx512", {"avx512_vnni": "avx512_vnni"}),
    ({*_AVX512_BF16, Feature.AVX512_VNNI}, "avx512_vnni", {}),
    ({Feature.NEON}, "neon", {"neon_dotprod": "dotprod"}),
    ({Feature.NEON, Feature.DOTPROD}, "neon_dotprod", {"avx2": "avx2"}),
)


@pytest.mark.parametrize("name", _DOTS)
@pytest.mark.parametrize(("features", "kernel", "missing"), _PRODUCTS_OF)
def test_products_with_codes_run_on_the_best_instructions_there_are(
    features: set[Feature], kernel: str, missing: dict[str, str], name: str
) -> None:
    problem = LinearProblem(
        in_features=64,
        out_features=48,
        dtype=DType.BFLOAT16,
        weights=WEIGHT_FORMATS[name],
    )
    caps = dataclasses.replace(OLD_CPU, features=frozenset(features))
    selection = Selector(caps, is_present=False).select(OPS["linear"], problem)
    is_reference = kernel == "reference_quantized"
    assert selection.kernel.name == kernel
    assert selection.level is (Level.REFERENCE if is_reference else Level.NATIVE)
    reasons = {r.kernel: r.reason for r in selection.rejected}
    for other, feature in missing.items():
        assert reasons[other] == f"needs {feature}; an old CPU has {caps.feature_names()}"
    assert reasons["torch"] == f"stores weights in bfloat16; the problem asks for {name}"


@pytest.mark.parametrize("weights", [None, *WEIGHT_FORMATS.values()])
def test_a_cpu_without_vectors_runs_everything_on_the_reference_or_torch(
    weights: WeightFormat | None,
) -> None:
    """And every kernel that it cannot run says which instructions are missing."""
    caps = dataclasses.replace(OLD_CPU, arch="x86", features=frozenset())
    selector = Selector(caps, is_present=False)
    problem = LinearProblem(in_features=64, out_features=48, dtype=DType.FLOAT32, weights=weights)
    selection = selector.select(OPS["linear"], problem)
    wanted = (
        ("torch", Level.NATIVE) if weights is None else ("reference_quantized", Level.REFERENCE)
    )
    assert (selection.kernel.name, selection.level) == wanted
    reasons = {r.kernel: r.reason for r in selection.rejected}
    for name in ("avx512_bf16", "avx512", "avx2", "neon_dotprod", "neon"):
        assert "an old CPU has none of the known features" in reasons[name]


@pytest.mark.parametrize("name", sorted(set(WEIGHT_FORMATS) - set(_DOTS)))
def test_codes_decoded_to_floats_run_where_no_dot_product_helps(name: str) -> None:
    problem = LinearProblem(
        in_features=64, out_features=48, dtype=DType.BFLOAT16, weights=WEIGHT_FORMATS[name]
    )
    for features, kernel in (
        ({Feature.AVX2, Feature.AVX_VNNI}, "avx2"),
        ({*_AVX512, Feature.AVX512_VNNI}, "avx512"),
        ({*_AVX512_BF16, Feature.AVX512_VNNI}, "avx512"),
        ({*_AVX512_BF16, Feature.AVX512_VBMI}, "avx512_decoded"),
    ):
        caps = dataclasses.replace(OLD_CPU, features=frozenset(features))
        selection = Selector(caps, is_present=False).select(OPS["linear"], problem)
        assert (selection.kernel.name, selection.level) == (kernel, Level.NATIVE)
        reasons = {r.kernel: r.reason for r in selection.rejected}
        if Feature.AVX512_VNNI in features:
            rounds = f"rounds activations to int8; {name} keeps them in bfloat16"
            assert reasons["avx512f_vnni"] == rounds
    bfloat16 = f"stores weights in bfloat16; the problem asks for {name}"
    assert {r.kernel: r.reason for r in selection.rejected}["torch"] == bfloat16


def test_a_kernel_that_cannot_read_the_format_is_refused_with_those_that_can() -> None:
    problem = LinearProblem(
        in_features=64, out_features=48, dtype=DType.BFLOAT16, weights=WEIGHT_FORMATS["int4"]
    )
    policy = SelectionPolicy(overrides={"linear": "torch"})
    with pytest.raises(SelectionError) as caught:
        Selector(OLD_CPU, policy, is_present=False).select(OPS["linear"], problem)
    assert "torch: stores weights in bfloat16; the problem asks for int4" in caught.value.message
    assert "reference_quantized: --kernel linear=torch was given" in caught.value.message
    assert caught.value.message.endswith("; --quantization that runs here: none")


FP8 = LinearProblem(
    in_features=64, out_features=48, dtype=DType.BFLOAT16, weights=WEIGHT_FORMATS["fp8"]
)
# No such CPU is known: every one with dots of codes has a level that decodes them as well.
WITHOUT_VBMI = dataclasses.replace(
    OLD_CPU,
    features=frozenset({Feature.AVX512_BF16, Feature.AVX512_VNNI}),
)
CARD = dataclasses.replace(
    OLD_CPU,
    vendor="nvidia",
    name="a card",
    arch="sm_90",
    features=frozenset({Feature.BF16_MMA}),
    is_accelerator=True,
)
# None that Triton's kernels are checked for.
OLD_CARD = dataclasses.replace(CARD, arch="sm_75")


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_codes_run_natively_on_a_card(name: str) -> None:
    problem = dataclasses.replace(FP8, weights=WEIGHT_FORMATS[name])
    selection = Selector(CARD, is_present=False).select(OPS["linear"], problem)
    assert (selection.kernel.name, selection.level) == ("triton", Level.NATIVE)


def test_only_16_bit_activations_meet_decoded_codes_on_a_card() -> None:
    problem = dataclasses.replace(FP8, dtype=DType.FLOAT32)
    selection = Selector(CARD, is_present=False).select(OPS["linear"], problem)
    reasons = {r.kernel: r.reason for r in selection.rejected}
    assert selection.level is Level.REFERENCE
    assert "activations of fp8 are in float32" in reasons["triton"]


def test_sums_of_codes_that_32_bits_do_not_hold_are_refused() -> None:
    problem = dataclasses.replace(FP8, weights=WEIGHT_FORMATS["int8"], in_features=133_145)
    selection = Selector(CARD, is_present=False).select(OPS["linear"], problem)
    reasons = {r.kernel: r.reason for r in selection.rejected}
    assert "in 32 bits; the weight has 133145" in reasons["triton"]


@pytest.mark.parametrize(
    ("caps", "policy", "rule", "formats"),
    [
        (
            WITHOUT_VBMI,
            SelectionPolicy(deterministic=True),
            "avx512_decoded: needs avx512_vbmi; an old CPU has avx512",
            "none, int8, int4, int4-g64, int4-g128, int4-asym, int4-g64-asym, int4-g128-asym",
        ),
        (
            WITHOUT_VBMI,
            SelectionPolicy(overrides={"linear": "avx512_vnni"}),
            "avx512_vnni: rounds activations to int8; fp8 keeps them in bfloat16",
            "int8, int4, int4-g64, int4-g128, int4-asym, int4-g64-asym, int4-g128-asym",
        ),
        (
            OLD_CARD,
            SelectionPolicy(strict=True),
            "reference_quantized: --strict refuses reference kernels on an accelerator",
            "none",
        ),
    ],
)
def test_a_format_without_a_kernel_is_refused_with_the_rule_and_the_formats_that_run(
    caps: Capabilities, policy: SelectionPolicy, rule: str, formats: str
) -> None:
    with pytest.raises(SelectionError) as caught:
        Selector(caps, policy, is_present=False).select(OPS["linear"], FP8)
    assert rule in caught.value.message
    assert caught.value.message.endswith(f"; --quantization that runs here: {formats}")


def test_a_format_on_the_reference_says_which_run_natively() -> None:
    selector = Selector(WITHOUT_VBMI, is_present=False)
    selector.select(OPS["linear"], FP8)
    (line,) = emulation_ledger(site_reports(selector, lambda *_: Evidence()))
    assert line.startswith("linear runs reference_quantized (reference): widens codes")
    assert "; native here: --quantization none, int8, int4, " in line
    assert "a16" not in line and "fp8" not in line
