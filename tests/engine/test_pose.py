"""A device that poses: chosen and sized as the real card would be, run on reference kernels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hal.build import BuiltEngine, Posed, build_engine
from hal.config import EngineConfig
from hal.device import Memory, MemoryKind
from hal.dtypes import DType
from hal.errors import ConfigError, MemoryPlanError, SelectionError
from hal.memory import MemoryPlan, format_bytes
from hal.profiles import find_profile
from hal.select import Level

Maker = Callable[..., Path]


def build(folder: Path, device: str = "null:mi300x", **settings: object) -> BuiltEngine:
    base: dict[str, object] = {"max_num_seqs": 4, "max_model_len": 128}
    return build_engine(EngineConfig(model=str(folder), device=device, **{**base, **settings}))  # type: ignore[arg-type]


def posed(built: BuiltEngine) -> Posed:
    assert built.posed is not None
    return built.posed


@pytest.fixture
def folder(tiny_checkpoint: Maker) -> Path:
    return tiny_checkpoint("llama", dtype="bfloat16")


@pytest.mark.parametrize("profile", ["mi300x", "h100"])
def test_the_posed_selection_is_the_cards_and_the_run_is_the_reference(
    folder: Path, profile: str
) -> None:
    built = build(folder, f"null:{profile}")
    caps = find_profile(profile).capabilities()
    assert posed(built).capabilities == caps
    # A composite op's reference body is chosen like any kernel: "composed" descends to finer ops.
    assert {s.kernel.name for s in built.selections} <= {"reference", "composed"}
    assert all(s.level is Level.NATIVE for s in posed(built).selections)
    linear = next(s for s in posed(built).selections if s.op == "linear")
    assert linear.kernel.name == "torch"
    reasons = {r.kernel: r.reason for r in linear.rejected}
    assert caps.name in reasons["avx512_bf16"]
    run = next(s for s in built.selections if s.op == "linear")
    assert {r.kernel for r in run.rejected} >= {"torch"}


def test_the_dtype_is_the_posed_cards(folder: Path) -> None:
    assert build(folder, "null:mi300x").resolved.dtype is DType.BFLOAT16
    assert build(folder, "null").resolved.dtype is DType.FLOAT32, "the plain device has no bfloat16"


def test_both_plans_are_kept_and_the_run_is_what_is_allocated(folder: Path) -> None:
    built = build(folder)
    plan = posed(built).plan
    assert plan.total_bytes == find_profile("mi300x").memory_bytes
    assert plan.budget_bytes == int(0.9 * plan.total_bytes)
    planned = _fixed_bytes(built.plan) + built.plan.kv_bytes
    assert built.device.allocated_bytes() == pytest.approx(planned, rel=0.01)
    assert built.plan.num_blocks == plan.num_blocks
    assert built.plan.kv_bytes == plan.kv_bytes


def test_memory_sizes_the_posed_card_and_its_pool_is_the_runs(folder: Path) -> None:
    full = posed(build(folder)).plan
    small = _fixed_bytes(full) + full.kv_bytes // full.num_blocks * 20
    built = build(folder, memory=f"{small}B")
    assert posed(built).plan.num_blocks == built.plan.num_blocks == 20
    assert built.engine.stats().num_blocks_total == 19, "and the null block"
    planned = _fixed_bytes(built.plan) + built.plan.kv_bytes
    assert built.device.allocated_bytes() == pytest.approx(planned, rel=0.01)
    reserved = build(folder, memory="reserve:100GiB")
    total = find_profile("mi300x").memory_bytes
    assert posed(reserved).plan.budget_bytes == total - (100 << 30)


def test_what_explain_shows(folder: Path) -> None:
    shown = build(folder, "null:gfx942").as_dict()
    assert "gfx942 means its first profile, mi300x" in str(shown["device"])
    stands_for = shown["posed"]
    assert isinstance(stands_for, dict)
    assert stands_for["device"] == {
        "vendor": "amd",
        "name": "AMD Instinct MI300X",
        "arch": "gfx942",
    }
    assert stands_for["memory"]["total_bytes"] == find_profile("mi300x").memory_bytes
    assert {row["kernel"] for row in stands_for["kernels"]} >= {"torch", "triton"}
    assert json.loads(json.dumps(shown)) == shown
    assert build(folder, "null").as_dict()["posed"] is None


def test_the_plan_text_says_which_is_which(folder: Path) -> None:
    built = build(folder)
    text = built.plan_text()
    assert text.startswith("on AMD Instinct MI300X\n  weights")
    assert "\nhere, for the reference kernels\n  weights" in text
    plain = build(folder, "null")
    assert plain.plan_text() == str(plain.plan)


def test_strict_judges_the_posed_kernels_not_the_reference_ones_that_run(folder: Path) -> None:
    built = build(folder, strict=True)
    assert any(s.kernel.name == "reference" for s in built.selections)
    with pytest.raises(SelectionError) as caught:
        build(folder, strict=True, kernel=("linear=reference",))
    text = caught.value.message
    assert "on AMD Instinct MI300X (gfx942)" in text
    assert "reference: --strict refuses reference kernels on an accelerator" in text


def test_kernel_overrides_bind_the_posed_selection(folder: Path) -> None:
    built = build(folder, kernel=("linear=reference",))
    linear = next(s for s in posed(built).selections if s.op == "linear")
    assert (linear.kernel.name, linear.reason) == ("reference", "--kernel linear=reference")
    fast = build(folder, kernel=("linear=torch",))
    assert next(s for s in posed(fast).selections if s.op == "linear").kernel.name == "torch"
    assert next(s for s in fast.selections if s.op == "linear").kernel.name == "reference"
    with pytest.raises(ConfigError, match="its kernels are"):
        build(folder, kernel=("linear=magic",))
    with pytest.raises(SelectionError, match="runs on CPUs only; this is AMD Instinct MI300X"):
        build(folder, kernel=("linear=avx512_bf16",))


def test_the_block_size_is_checked_against_the_posed_families(folder: Path) -> None:
    assert build(folder, block_size=32).engine.scheduler.config.block_size == 32
    with pytest.raises(ConfigError, match="--block-size 7 cannot run here.*16"):
        build(folder, block_size=7)


@pytest.fixture
def large_config(folder: Path, tmp_path: Path) -> Path:
    """A 70B model of which only config.json is real: it must be refused before weights are read."""
    shutil.copytree(folder, tmp_path / "70b")
    path = tmp_path / "70b" / "config.json"
    config = json.loads(path.read_text())
    config |= {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    path.write_text(json.dumps({**config, "vocab_size": 128256}))
    return path.parent


def test_what_does_not_fit_the_posed_card_is_refused_as_it_would_be_there(
    large_config: Path,
) -> None:
    with pytest.raises(MemoryPlanError) as caught:
        build(large_config, "null:h100")
    text = caught.value.message
    total = find_profile("h100").memory_bytes
    assert text.startswith("does not fit: weights 131.42 GiB")
    assert f"--memory 0.9 gives {format_bytes(int(0.9 * total))}" in text
    assert f"This device has {format_bytes(total)} available: free " in text


def test_what_fits_the_posed_card_but_not_this_host_says_so(
    large_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.devices.host.host_memory", small_host)
    with pytest.raises(MemoryPlanError) as caught:
        build(large_config, "null:mi300x")
    text = caught.value.message
    assert text.startswith("AMD Instinct MI300X would hold it, but the reference kernels run in ")
    assert "does not fit: weights 131.42 GiB" in text and "raise --memory" not in text.lower()


def small_host(root: Path = Path("/")) -> Memory:
    return Memory(kind=MemoryKind.HOST, total_bytes=8 << 30, available_bytes=6 << 30)


def _fixed_bytes(plan: MemoryPlan) -> int:
    return plan.weights_bytes + plan.activation_bytes + plan.logits_bytes
