"""Upper bounds by hand, and that nothing is said where nothing is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import hal
from hal.planning.report import PlanReport

Published = Callable[..., str]


def rates(report: PlanReport) -> dict[tuple[str, int], tuple[float, str]]:
    return {(r.what, r.num_seqs): (r.tokens_per_s, r.bound) for r in report.rates}


def test_decode_reads_weights_and_cache_once_a_step(published: Published) -> None:
    report = hal.plan(published("llama-2-7b"), device="h100", ctx=4096, concurrency=8)
    embedding = 32000 * 4096 * 2
    weights = report.model.shape.num_parameters * 2 - embedding
    cache = 32 * 2 * 32 * 128 * 2 * 1024  # layers, keys and values, heads, dim, bytes, tokens
    found = rates(report)
    assert found["decode", 1][0] == pytest.approx(3350e9 / (weights + cache), rel=1e-3)
    assert found["decode", 8][0] == pytest.approx(8 * 3350e9 / (weights + 8 * cache), rel=1e-3)
    assert found["decode", 1][1] == found["decode", 8][1] == "memory"


def test_prefill_multiplies(published: Published) -> None:
    report = hal.plan(published("llama-2-7b"), device="h100", ctx=4096)
    matrices = report.model.shape.num_parameters - 2 * 32000 * 4096
    attention = 32 * 2 * 4096 * 512  # layers, q.k and weights.v, width, half of the prompt
    rate, bound = rates(report)["prefill", 1]
    assert bound == "compute"
    assert rate == pytest.approx(989e12 / (2 * (matrices + attention)), rel=1e-3)


def test_experts_of_one_token_are_the_least_that_is_read(published: Published) -> None:
    report = hal.plan(published("mixtral-8x7b"), device="mi300x", ctx=1024)
    active = report.model.shape.active_parameters * 2
    cache = 32 * 2 * 8 * 128 * 2 * 256
    assert rates(report)["decode", 1][0] == pytest.approx(5300e9 / (active + cache), rel=1e-3)


def test_tokens_of_a_step_share_experts(published: Published) -> None:
    """128 experts, 8 a token: two tokens are expected to meet 15.5 of them, many all."""
    model = published("qwen3-30b-a3b")
    report = hal.plan(model, device="h200", ctx=1024, concurrency=2, typical=1)
    experts = 48 * 3 * 2048 * 768 * 2
    rest = report.model.shape.active_parameters * 2 - 8 * experts
    cache = 48 * 2 * 4 * 128 * 2
    read = rest + 15.5 * experts + 2 * cache
    assert rates(report)["decode", 2][0] == pytest.approx(2 * 4800e9 / read, rel=1e-3)
    many = hal.plan(model, device="h200", ctx=1024, concurrency=100, typical=1).rates[-1]
    assert many.step_bytes == pytest.approx(rest + 127.8 * experts + 100 * cache, rel=1e-3)


def test_a_window_bounds_what_is_read(published: Published) -> None:
    model = published("mistral-7b")
    near = hal.plan(model, device="h100", ctx=32768, typical=4096)
    far = hal.plan(model, device="h100", ctx=32768, typical=32768)
    assert rates(near)["decode", 1] == rates(far)["decode", 1]


def test_a_prompt_sees_less_than_its_window_on_average(published: Published) -> None:
    report = hal.plan(published("mistral-7b"), device="h100", ctx=32768, typical=16384)
    matrices = report.model.shape.num_parameters - 2 * 32000 * 4096
    # The first 4096 tokens see 2048 on average, the other three quarters 4096.
    attention = 32 * 2 * 4096 * (2048 + 3 * 4096) / 4
    rate, _ = rates(report)["prefill", 1]
    assert rate == pytest.approx(989e12 / (2 * (matrices + attention)), rel=1e-3)


def test_a_latent_prompt_is_attended_to_by_heads(published: Published) -> None:
    """Folded into the latent, as decoding does it, would be 3.4 x the work: no upper bound."""
    model = published("deepseek-v3", num_hidden_layers=4)
    report = hal.plan(model, device="h200", ctx=8192, typical=8192)
    head = 129280 * 7168
    attention = 4 * 128 * (192 + 128) * 4096
    flops = 2 * (report.model.shape.active_parameters - head + attention)
    rate, bound = rates(report)["prefill", 1]
    assert bound == "compute"
    assert rate == pytest.approx(989e12 / flops, rel=1e-3)


def test_an_encoder_is_not_read_for_a_token_of_the_answer(published: Published) -> None:
    report = hal.plan(published("t5-large"), device="h100", ctx=512, typical=128)
    found = rates(report)
    encoder = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
    read = report.model.shape.num_parameters - encoder
    cache = 2 * 24 * 2 * 16 * 64 * 128
    itemsize = report.sized.resolved.dtype.num_bytes(1)
    assert found["decode", 1][0] == pytest.approx(3350e9 / (itemsize * (read + cache)), rel=1e-3)
    assert not any(what == "prefill" for what, _ in found)


def test_a_slow_link_is_the_bound(published: Published) -> None:
    report = hal.plan(published("llama-3-8b"), device="4xrtx5090", quantization="int8")
    assert rates(report)["prefill", 1][1] == "link"


def test_smaller_weights_raise_the_bound(published: Published) -> None:
    model = published("llama-3-8b")
    plain, int4 = (hal.plan(model, device="h100", quantization=q) for q in ("none", "int4"))
    assert rates(int4)["decode", 1][0] > 2.5 * rates(plain)["decode", 1][0]
    for name, factor in (("int8", 2), ("int4", 2), ("fp8", 1), ("int4-a16", 1)):
        report = hal.plan(model, device="h100", quantization=name)
        expected = factor * rates(plain)["prefill", 1][0]
        assert rates(report)["prefill", 1][0] == pytest.approx(expected, rel=0.01)
        is_said = any("saves memory, not arithmetic" in note for note in report.notes)
        assert is_said is (factor == 1)


def test_no_profile_no_rates(published: Published) -> None:
    report = hal.plan("hal-tiny", device="cpu")
    assert report.rates == ()
    assert "no profile describes this device: no rates" in report.notes
    assert hal.plan(published("clip-vit-b32"), device="h100").rates == ()


def test_json_says_upper_bound(published: Published) -> None:
    report = hal.plan(published("llama-2-7b"), device="h100")
    data = report.as_json()
    assert isinstance(data["rates"], list)
    assert all("upper_bound_tokens_per_s" in rate for rate in data["rates"])
