"""hal-info explain: sites of a model on present and absent devices, from config.json alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hal import tiny
from hal.cli import info


def explained(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert info.main(["explain", *argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert isinstance(said, dict)
    return said


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    shutil.copy(Path(tiny.path()) / "config.json", tmp_path)
    return tmp_path


def test_an_absent_device_is_explained_from_a_config_alone(
    config_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (config_only, config_only / "config.json"):
        said = explained(capsys, str(model), "--device", "null:gfx942")
        device = said["device"]
        assert isinstance(device, dict)
        assert "gfx942 means its first profile, mi300x" in device["reason"]
        assert device == {
            "spec": "null:gfx942",
            "present": False,
            "reason": device["reason"],
            "vendor": "amd",
            "name": "AMD Instinct MI300X",
            "arch": "gfx942",
        }
        kernels = said["kernels"]
        assert isinstance(kernels, list)
        assert {k["op"] for k in kernels} >= {"attention_block", "mlp_block", "linear", "vocab"}
        assert all(k["kernel"] not in ("reference", "avx512_bf16") for k in kernels)
        assert all(r["reason"] for k in kernels for r in k["rejected"])


def test_a_present_device_says_what_is_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    said = explained(capsys, "hal-tiny", "--device", "null")
    kernels = said["kernels"]
    assert isinstance(kernels, list)
    assert {k["level"] for k in kernels if k["kernel"] == "reference"} == {"reference"}


@pytest.mark.parametrize(
    ("profile", "dots", "level"),
    [
        ("avx2", "avx2", "avx2"),
        ("avx-vnni", "avx2_vnni", "avx2"),
        ("avx512", "avx512f_vnni", "avx512"),
        ("arm-neon", "neon_dotprod", "neon_dotprod"),
    ],
)
@pytest.mark.parametrize("quantization", ["none", "int4-asym", "int8-a16", "fp8"])
def test_a_cpu_runs_everything_on_the_kernels_of_its_level(
    capsys: pytest.CaptureFixture[str], profile: str, dots: str, level: str, quantization: str
) -> None:
    argv = ("hal-tiny", "--device", f"null:{profile}", "--quantization", quantization)
    kernels = explained(capsys, *argv)["kernels"]
    assert isinstance(kernels, list)
    assert {k["level"] for k in kernels} == {"native"}
    chosen = {k["op"]: k["kernel"] for k in kernels}
    products = dots if quantization == "int4-asym" else level
    assert {op: chosen[op] for op in ("linear", "mlp_block", "vocab")} == dict.fromkeys(
        ("linear", "mlp_block", "vocab"), products
    )
    rows = ("attention", "gather_rows", "qk_norm_rope", "rms_norm", "sample")
    assert {op: chosen[op] for op in rows} == dict.fromkeys(rows, level)


def test_the_text_fits_a_terminal_and_counts_the_levels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert info.main(["explain", "hal-tiny", "--device", "null:h100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0] == "llama on NVIDIA H100 SXM 80 GB, sm_90 (null:h100)"
    assert re.fullmatch(r"\d+ sites: \d+ native, 0 upcast, 0 reference", lines[-1])


def test_strict_on_a_device_that_upcasts_prints_the_rows_then_the_cause(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["explain", "hal-tiny", "--device", "null:v100", "--strict", "--dtype", "bfloat16"]
    assert info.main(argv) == 5
    said = capsys.readouterr()
    rows = [line for line in said.err.splitlines() if line.startswith("  not ")]
    assert any("not torch (--strict): --strict refuses upcast kernels" in row for row in rows)
    last = said.err.splitlines()[-1]
    assert last.startswith("hal-info explain: HAL-E500: no kernel of vocab runs")
    assert "torch: --strict refuses upcast kernels" in last
    assert "store" in said.out, "what was chosen before is still shown"


@pytest.mark.parametrize(
    ("argv", "exit_code", "words"),
    [
        (["hal-tiny", "--device", "null:h10"], 2, "did you mean h100"),
        (["hal-tiny", "--device", "cudaa"], 2, "Did you mean --device cuda?"),
        (["hal-tiny", "--kernel", "linear=fast"], 2, "its kernels are"),
        (["hal-tiny", "--max-model-len", "5000"], 2, "above the model's context of 1024"),
        (["/no/such/folder"], 2, "does not exist"),
        (["hal-tiny", "extra"], 2, "only one MODEL is taken"),
        (["hal-tiny", "--jso"], 2, "did you mean --json?"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], exit_code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert info.main(["explain", *argv]) == exit_code
    assert words in last_line(capsys)


def test_an_override_is_known_in_a_process_that_selected_nothing_yet() -> None:
    argv = ["explain", "hal-tiny", "--device", "cpu", "--kernel", "linear=reference", "--json"]
    command = [sys.executable, "-P", "-m", "hal.cli.info", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    chosen = {k["op"]: k["reason"] for k in json.loads(done.stdout)["kernels"]}
    assert chosen["linear"] == "--kernel linear=reference"


def test_a_config_without_a_key_names_it(
    config_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((config_only / "config.json").read_text())
    del config["hidden_size"]
    (config_only / "config.json").write_text(json.dumps(config))
    assert info.main(["explain", str(config_only), "--device", "cpu"]) == 2
    assert "'hidden_size'" in last_line(capsys)
