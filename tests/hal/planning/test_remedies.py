"""What does not fit is refused with remedies; each is exact: a step less does not fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hal
from hal.errors import ConfigError, MemoryPlanError
from hal.memory import parse_size, size_argument
from hal.planning.model import PlannedModel, read_planned_model
from hal.planning.parallel import legal_tp
from hal.planning.plan import plan_for
from hal.planning.remedies import Remedy
from hal.planning.report import PlanReport
from hal.planning.settings import PlanSettings
from hal.planning.sizing import Sizer
from hal.planning.target import find_device, larger_profiles
from hal.profiles import find_profile, parse_target

Published = Callable[..., str]


def fits(asked: PlanSettings) -> bool:
    """As plan_for asks, without all that it also answers."""
    device = find_device(asked.device)
    sizer = Sizer(model_of(asked.model))
    return sizer.size(replace(asked, tp=asked.tp or device.count), device, is_exact=True).fits


@functools.cache
def model_of(folder: str) -> PlannedModel:
    return read_planned_model(folder)


def kinds(report: PlanReport) -> list[str]:
    return [remedy.text for remedy in report.remedies]


def check_exact(report: PlanReport, remedy: Remedy) -> None:
    """Applying it makes it fit; a step less does not."""
    asked = report.settings
    applied = replace(remedy.settings, tp=None if "--device" in remedy.text else asked.tp)
    assert fits(applied), remedy.text
    if "--ctx to" in remedy.text:
        assert remedy.settings.ctx
        assert not fits(replace(applied, ctx=remedy.settings.ctx + 1))
    elif "--concurrency to" in remedy.text:
        assert remedy.settings.concurrency
        assert not fits(replace(applied, concurrency=remedy.settings.concurrency + 1))
    elif "--memory to" in remedy.text:
        size = parse_size(str(remedy.settings.memory))
        less = size_argument(size - (1 << 30) // 50, round_up=False)
        assert not fits(replace(applied, memory=less))
    elif "devices:" in remedy.text:
        target = parse_target(remedy.settings.device)
        smaller = [tp for tp in legal_tp(report.model.shape) if tp < target.count]
        assert not any(fits(replace(asked, device=target.name, tp=tp)) for tp in smaller)
    elif "bigger device" in remedy.text:
        chosen = find_profile(parse_target(remedy.settings.device).name)
        count = asked.tp or 1
        for profile in larger_profiles(report.device.capabilities.memory.total_bytes):
            if profile.memory_bytes < chosen.memory_bytes:
                name = f"{count}x{profile.name}" if count > 1 else profile.name
                assert not fits(replace(asked, device=name, tp=None)), name
    elif remedy.text == "--quantization int4":
        assert not fits(replace(asked, quantization="int8"))


CASES = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["llama-3-8b", "qwen3-30b-a3b", "mistral-7b", "gemma-2-9b"])
        | st.sampled_from(["llama-3-70b", "mixtral-8x7b", "deepseek-v2-lite", "gpt2-xl"]),
        "device": st.sampled_from(
            ["rtx4090", "2xrtx3090", "l4", "h100", "2xa100-40gb", "mi300x", "strixhalo", "avx2"]
        ),
        "concurrency": st.none() | st.integers(1, 300),
        "share": st.floats(0.02, 1.0),
        "slots": st.none() | st.integers(300, 1000),
        "kv": st.sampled_from(["auto", "auto", "fp8"]),
        "memory": st.sampled_from([0.9, 0.6, "12GiB", "reserve:4GiB"]),
    }
)


@given(case=CASES)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_remedy_is_exact(case: dict[str, Any], published: Published) -> None:
    model = published(case["model"])
    ctx = max(1, int(case["share"] * model_of(model).shape.max_position_embeddings))
    asked = PlanSettings(
        model=model,
        device=case["device"],
        ctx=ctx,
        concurrency=case["concurrency"],
        kv=case["kv"],
        max_num_seqs=case["slots"],
        memory=case["memory"],
    )
    try:
        report = plan_for(asked)
    except ConfigError:  # two cards cannot share 25 heads
        return
    if report.fits:
        assert report.remedies == ()
        return
    for remedy in report.remedies:
        check_exact(report, remedy)


def test_180b_in_16_bit_on_four_cards_of_80_gb(published: Published) -> None:
    model = published("falcon-180b")
    for device in ("4xa100-80gb", "4xh100"):
        report = hal.plan(model, device=device)
        assert not report.fits and report.error is not None
        assert report.error.code == "HAL-E300"
        assert "weights 83.6" in report.error.message
        assert "--quantization int8" in kinds(report)
        assert f"8 devices: --device 8x{device[2:]}" in kinds(report)
        assert report.parallel.smallest == 8
        assert [reason.partition(":")[0] for reason in report.parallel.reasons] == ["1", "2", "4"]
        for remedy in report.remedies:
            check_exact(report, remedy)


def test_llama_2_at_32768_is_refused_before_any_size(published: Published) -> None:
    with pytest.raises(ConfigError, match="32768 is above the model's context of 4096 tokens"):
        hal.plan(published("llama-2-7b"), device="h200", ctx=32768)


def test_70b_in_bf16_on_one_h200_for_64_long_sequences(published: Published) -> None:
    report = hal.plan(published("llama-3-70b"), device="h200", ctx=8192, concurrency=64)
    assert not report.fits and report.memory is None
    assert kinds(report) == ["--quantization int4 and --kv int8", "4 devices: --device 4xh200"]
    assert report.capacity.sequences_full == report.capacity.longest_ctx == 0
    for remedy in report.remedies:
        check_exact(report, remedy)


def test_less_context_or_fewer_sequences(published: Published) -> None:
    report = hal.plan(published("llama-3-8b"), device="rtx4090", ctx=8192, concurrency=16)
    texts = kinds(report)
    assert texts[0].startswith("lower --ctx to ") and texts[1].startswith("lower --concurrency to ")
    assert f"lower --concurrency to {report.capacity.sequences_full}" == texts[1]
    assert f"lower --ctx to {report.capacity.longest_ctx}" == texts[0]
    for remedy in report.remedies:
        check_exact(report, remedy)


def test_a_quantised_checkpoint_is_not_told_to_quantise(published: Published) -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    model = published("llama-3-70b", quantization_config=gptq)
    report = hal.plan(model, device="rtx4090")
    assert not report.fits
    assert not any("--quantization" in text for text in kinds(report))
    with pytest.raises(ConfigError, match="quantised already"):
        hal.plan(model, device="h200", quantization="int4")


def test_what_nothing_helps_says_so(published: Published) -> None:
    report = hal.plan(published("deepseek-v3"), device="avx2")
    assert isinstance(report.error, MemoryPlanError)
    assert kinds(report) == []
    assert "No setting and no known device makes it fit" in report.error.message


def test_capacity_is_the_edge(published: Published) -> None:
    model = published("llama-3-8b")
    report = hal.plan(model, device="h100", ctx=4096)
    most = report.capacity.sequences_full
    assert hal.plan(model, device="h100", ctx=4096, concurrency=most).fits
    assert not hal.plan(model, device="h100", ctx=4096, concurrency=most + 1).fits
    longest = hal.plan(model, device="h100", ctx=8192, concurrency=100).capacity.longest_ctx
    assert hal.plan(model, device="h100", ctx=longest, concurrency=100).fits
    assert not hal.plan(model, device="h100", ctx=longest + 1, concurrency=100).fits


def test_typical_sequences_hold_what_they_hold(published: Published) -> None:
    model = published("mistral-7b")
    report = hal.plan(model, device="h100", ctx=32768, typical=1000)
    assert report.typical == 1000
    per_sequence = report.sized.sequence_bytes(1000)
    assert per_sequence == 63 * report.inputs.kv_bytes_per_block  # 1000 / 16, rounded up
    room = report.inputs.memory.total_bytes * 0.9 - report.inputs.fixed_bytes
    assert report.capacity.sequences_typical == pytest.approx(room / per_sequence, rel=0.01)
