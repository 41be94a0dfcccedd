"""hal-info plan as a stranger uses it: text, JSON, exit codes, one message for each mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published_configs import PUBLISHED, write_config
from recorded_accelerator import H100

import hal
from hal.cli import info
from hal.device import Device
from hal.devices import cuda
from hal.devices.registry import CpuVendor
from hal.devices.vendor import Vendor
from hal.errors import ConfigError, DeviceUnavailable, ModelError
from hal.planning import target
from hal.report import DeviceReport

ROOT = Path(__file__).resolve().parents[2]
Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HAL_DEVICE", "HAL_MODEL", "HAL_CTX", "HAL_MAX_MODEL_LEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "llama-3-8b", "llama-3-8b")
    write_config(tmp_path / "llama-2-7b", "llama-2-7b")


def ask(said: Said, *argv: str) -> tuple[int, str, str]:
    code = info.main(["plan", *argv])
    out, err = said.readouterr()
    return code, out, err


def test_what_fits_is_drawn_in_100_columns(capsys: Said) -> None:
    code, out, err = ask(capsys, "llama-3-8b", "--device", "h100", "--ctx", "8k")
    assert (code, err) == (0, "")
    assert out.startswith("llama-3-8b on NVIDIA H100 SXM 80 GB: fits\n")
    assert "engine: summed as start-up sums" in out
    for part in ("weights", "KV cache", "activations", "logits", "graphs", "communicator"):
        assert re.search(rf"[█▓▒] {part} +[\d.]+ (GiB|MiB|B)", out)
    assert "UPPER BOUNDS" in out and "bound by memory" in out
    assert max(len(line) for line in out.splitlines()) <= 100
    (bar,) = (line for line in out.splitlines() if line.startswith("  ██"))
    assert len(bar) == 92 and 15 <= bar.count("█") <= 18  # 18.8 % are weights


def test_what_does_not_fit_ends_with_the_remedies(capsys: Said) -> None:
    argv = ("llama-3-8b", "--device", "rtx4090", "--ctx", "8192", "--concurrency", "16")
    code, out, err = ask(capsys, *argv)
    assert code == 2
    assert "DOES NOT FIT" in out and "to make it fit, any one of" in out
    assert err.startswith("hal-info plan: HAL-E300: does not fit: weights 14.96 GiB")
    assert "lower --ctx to 3248; or lower --concurrency to 6" in err
    assert err.count("\n") == 1 and max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("falcon-180b", ["--device", "4xa100-80gb"]),
        ("falcon-180b", ["--device", "4xh100"]),
        ("llama-2-7b", ["--device", "h200", "--ctx", "32768"]),
        ("llama-3-70b", ["--device", "h200", "--ctx", "8k", "--concurrency", "64"]),
    ],
)
def test_famous_plans_that_cannot_work(
    capsys: Said, tmp_path: Path, name: str, argv: list[str]
) -> None:
    code, _, err = ask(capsys, write_config(tmp_path / "m", name), *argv)
    assert code == 2
    assert "lower it to 4096" in err if name == "llama-2-7b" else "devices: --device" in err


def test_json_has_the_documented_keys(capsys: Said) -> None:
    code, out, _ = ask(capsys, "llama-3-8b", "--device", "2xl4", "--json", "--concurrency", "2")
    data = json.loads(out)
    assert (code, data["schema"], data["fits"], data["basis"]) == (0, 1, True, "config")
    assert data["model"]["parameters"] == PUBLISHED["llama-3-8b"].num_parameters
    assert data["device"]["count"] == data["tensor_parallel"]["used"] == 2
    assert data["memory"]["weights_bytes"] > 2**32
    assert data["error"] is None and data["remedies"] == []
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    missing = [key for key in _keys(data) if f"`{key}`" not in page]
    assert missing == []


def _keys(value: Any) -> set[str]:
    """Every key at any depth, but those of `reasons`, which are settings."""
    if isinstance(value, dict):
        inner = {k for name, v in value.items() if name != "reasons" for k in _keys(v)}
        return {*value, *inner}
    return {k for item in value for k in _keys(item)} if isinstance(value, list) else set()


def test_json_of_what_does_not_fit_has_settings_to_ask_again_with(capsys: Said) -> None:
    argv = ("llama-3-8b", "--device", "rtx4090", "--concurrency", "16", "--json")
    code, out, err = ask(capsys, *argv)
    data = json.loads(out)
    assert code == 2 and data["error"]["code"] == "HAL-E300" and "HAL-E300" in err
    for remedy in data["remedies"]:
        asked: dict[str, Any] = {"device": "rtx4090", "concurrency": 16, **remedy["settings"]}
        if "device" in remedy["settings"]:
            asked.pop("tp", None)
        assert hal.plan("llama-3-8b", **asked).fits, remedy


def test_compare_prints_a_row_for_each_and_why_not(capsys: Said) -> None:
    devices = "h200,mi300x,2xrtx4090,rtx4090,3xh100,nope"
    code, out, _ = ask(capsys, "llama-3-8b", "--compare", devices, "--concurrency", "16")
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line[:1].strip()}
    assert code == 0
    assert [rows[d] for d in devices.split(",")] == ["yes", "yes", "yes", "no", "no", "no"]
    assert "rtx4090: HAL-E300: does not fit" in out
    assert "3 does not divide 32 attention heads" in out
    assert "unknown device 'nope'. Profiles:" in " ".join(out.split())  # opencl is no hint
    assert max(len(line) for line in out.splitlines()) <= 100
    code, out, _ = ask(capsys, "llama-3-8b", "--compare", "nope,l4", "--ctx", "8k", "--json")
    plans = json.loads(out)["plans"]
    assert [(plan["asked"], plan["fits"]) for plan in plans] == [("nope", False), ("l4", True)]
    assert plans[0]["error"]["code"] == "HAL-E100"
    code, _, err = ask(capsys, "llama-3-8b", "--compare", "nope,3xh100")
    assert code == 2
    assert err.startswith("hal-info plan: none of 2 devices fits; the first, nope: HAL-E100: ")
    _, _, err = ask(capsys, "llama-3-8b", "--compare", "rtx4090", "--concurrency", "16")
    assert err.startswith("hal-info plan: rtx4090: HAL-E300: does not fit")


def test_an_arch_means_its_first_profile_and_says_so(capsys: Said) -> None:
    _, out, _ = ask(capsys, "llama-3-8b", "--device", "gfx942")
    assert "  gfx942 means its first profile; profile mi300x: AMD Instinct MI300X\n" in out
    _, out, _ = ask(capsys, "llama-3-8b", "--device", "gaudi2")
    assert "first profile" not in out


def test_a_concurrency_beyond_all_memory_takes_none_here(capsys: Said) -> None:
    code, _, err = ask(capsys, "hal-tiny", "--device", "h200", "--concurrency", "2000000000")
    assert code == 2
    assert "HAL-E300: does not fit" in err and "lower --concurrency to " in err


def test_an_encoding_without_bars_is_no_error() -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hal.cli.info", "plan", "hal-tiny", "--device", "h100"],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "  ? weights" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_message() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "hal.cli.info", "plan", "hal-tiny", "--device", "h100"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "hal-info plan: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_other_names_of_the_same_settings(capsys: Said) -> None:
    ours = ask(capsys, "llama-3-8b", "--device", "h100", "--ctx", "4k", "--memory", "0.8", "--tp=2")
    theirs = ask(
        capsys,
        *("--model", "llama-3-8b", "--device", "h100", "--max-model-len", "4096"),
        *("--gpu-memory-utilization", "0.8", "--tensor-parallel-size", "2"),
    )
    assert ours == theirs and ours[0] == 0


def test_the_environment_sets_what_flags_set(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_DEVICE", "l4")
    monkeypatch.setenv("HAL_MAX_MODEL_LEN", "512")
    monkeypatch.setenv("HAL_PORT", "1")  # another command's
    code, out, _ = ask(capsys, "llama-3-8b")
    assert code == 0 and "on NVIDIA L4: fits" in out and "of 512 tokens" in out
    code, out, _ = ask(capsys, "llama-3-8b", "--compare", "h100,l4")
    assert code == 0


MISTAKES = [
    (["--concurrency", "0"], "--concurrency: '0' is not a whole number of at least 1"),
    (["--concurrency", "-4"], "--concurrency: '-4' is not a whole number"),
    (["--concurrency", "many"], "--concurrency: 'many' is not a whole number"),
    (["--ctx", "0"], "--ctx: '0' is not a whole number"),
    (["--ctx", "8kk"], "--ctx: '8kk' is not a whole number"),
    (["--ctx", "1.00001k"], "--ctx: '1.00001k' is not a whole number"),
    (["--ctx", "9" * 40], "is not a whole number"),
    (["--ctx", "16k"], "--ctx 16384 is above the model's context of 8192 tokens"),
    (["--typical", "16k"], "--typical 16384 is above the model's context of 8192 tokens"),
    (["--ctx", "100", "--typical", "200"], "typical 200 is above ctx 100"),
    (["--device", "h1000"], "unknown device 'h1000'. Did you mean h100"),
    (["--device", "0xh100"], "the count must be from 1 to 256"),
    (["--device", "1000xh100"], "the count must be from 1 to 256"),
    (["--device", "null:mi300x"], "name it, e.g. --device mi300x"),
    (["--device", "2xcpu"], "2 of cpu are one machine with one memory"),
    (["--device", "3xh100"], "3 does not divide 32 attention heads. Legal --tp: 1, 2, 4, 8"),
    (["--kv", "fp4"], "--kv 'fp4' is not known; choose auto, int8, fp8"),
    (["--quantization", "q4"], "--quantization 'q4' is not known; choose one of none"),
    (["--memory", "7"], "write a unit, like 7GiB"),
    (["--dtype", "int3"], "unknown dtype 'int3'"),
    (["--compare", ","], "--compare names no device"),
    (["--compare", "l4", "--device", "l4"], "both name devices"),
    (["--ctx", "1k", "--max-model-len", "2k"], "are the same setting; give one of them"),
    (["--concurrency", "9", "--max-num-seqs", "8"], "concurrency 9 is above max_num_seqs 8"),
    (["--devise", "l4"], "did you mean --device?"),
    (["--cpu-offload-gb", "4"], "not supported yet: hal-info plan with --cpu-offload-gb"),
    (["--block-size", "7"], "--block-size 7 cannot run here"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(m[0])[:40] for m in MISTAKES])
def test_a_mistake_is_one_message(capsys: Said, argv: list[str], message: str) -> None:
    code, out, err = ask(capsys, "llama-3-8b", *argv)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert re.match(r"hal-info plan: HAL-E1\d\d: ", err)


def test_models_that_cannot_be_read(capsys: Said, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    configs = {
        "broken": "{oops",
        "list": "[]",
        "binary": "\udcff\udcfe",
        "keys": '{"model_type": "llama", "hidden_size": 64}',
        "odd": '{"model_type": "flamingo", "hidden_size": 64}',
        "negative": '{"model_type": "llama", "hidden_size": -1, "intermediate_size": 1, '
        '"num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1}',
    }
    for name, text in configs.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / "config.json"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    expected = {
        "./empty": "is not a model folder: it has no config.json",
        "./folder": "is not a model folder: it has no config.json",
        "./nowhere": "does not exist; check the path",
        "/" + "x" * 5000: "cannot be read: File name too long",
        "./broken": "is not readable JSON",
        "./binary": "is not readable JSON",
        "./list": "must hold a JSON object",
        "./keys": "lacks intermediate_size, num_hidden_layers, num_attention_heads, vocab_size",
        "./odd": "lacks num_hidden_layers, num_attention_heads, vocab_size",
        "./negative": "'hidden_size' must be from 1 to",
        "some/where": "planning downloads nothing. Fetch its config.json once: hf download",
        "": "is neither hal-tiny, nor a folder, nor a hub id",
    }
    for model, message in expected.items():
        code, out, err = ask(capsys, model, "--device", "h100")
        assert (code, out) == (2, ""), model
        assert message in err and err.count("\n") == 1, err
        assert err.startswith("hal-info plan: HAL-E200: ")


class OneCard(Vendor):
    """A machine with one H100."""

    name = "cuda"

    def probe(self) -> tuple[DeviceReport, ...]:
        caps = cuda.capabilities(H100, 60 * 2**30, "13.0")
        return (DeviceReport(spec="cuda:0", capabilities=caps),)

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise NotImplementedError("a plan opens nothing")


class LyingCard(OneCard):
    """A driver that reports nonsense."""

    total_bytes = 0
    free_bytes = 80 * 2**30

    def probe(self) -> tuple[DeviceReport, ...]:
        card = replace(H100, total_memory=self.total_bytes)
        return (
            DeviceReport(
                spec="cuda:0", capabilities=cuda.capabilities(card, self.free_bytes, "13.0")
            ),
        )


@pytest.mark.parametrize(
    ("total", "free", "said"),
    [
        (0, 0, "this device has 0 B of memory, which cannot be"),
        (0, 80 * 2**30, "this device has 0 B of memory, which cannot be"),
        (2**30, 80 * 2**30, "--memory 0.9 gives 921.60 MiB"),  # of the total, not of the lie
    ],
)
def test_a_driver_that_lies_about_memory_gets_an_answer(
    capsys: Said, monkeypatch: pytest.MonkeyPatch, total: int, free: int, said: str
) -> None:
    card = LyingCard()
    card.total_bytes, card.free_bytes = total, free
    vendors: Mapping[str, Vendor] = {v.name: v for v in (card, CpuVendor())}
    monkeypatch.setattr(target, "all_vendors", lambda: vendors)
    code, _, err = ask(capsys, "llama-3-8b", "--device", "cuda")
    assert code == 2 and err.count("\n") == 1
    assert said in err


def test_a_present_card_is_planned_by_what_the_probe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    vendors: Mapping[str, Vendor] = {v.name: v for v in (OneCard(), CpuVendor())}
    monkeypatch.setattr(target, "all_vendors", lambda: vendors)
    for device in ("auto", "cuda", "cuda:0"):
        report = hal.plan("llama-3-8b", device=device, memory="reserve:8GiB")
        assert (report.device.name, report.device.is_present) == ("cuda:0", True)
        assert report.inputs.memory.available_bytes == 60 * 2**30
        assert {part.name: part.num_bytes for part in report.parts()}["others"] == 20 * 2**30
        assert report.device.profile is not None and report.device.profile.name == "h100"
        assert report.rates
    with pytest.raises(DeviceUnavailable, match="cuda:1"):
        hal.plan("llama-3-8b", device="cuda:1")
    held = hal.plan("llama-3-8b", device="cuda", memory=0.7)
    assert held.fits


def test_memory_that_others_hold_is_one_message(
    capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors: Mapping[str, Vendor] = {v.name: v for v in (OneCard(), CpuVendor())}
    monkeypatch.setattr(target, "all_vendors", lambda: vendors)
    code, out, err = ask(capsys, "llama-3-8b", "--device", "cuda")
    assert (code, out) == (2, "")
    assert "asks for 72.00 GiB, but only 60.00 GiB of 80.00 GiB are available" in err
    assert "Lower --memory to 0.75" in err


def test_a_device_whose_memory_others_hold_is_a_row(
    capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors: Mapping[str, Vendor] = {v.name: v for v in (OneCard(), CpuVendor())}
    monkeypatch.setattr(target, "all_vendors", lambda: vendors)
    code, out, _ = ask(capsys, "llama-3-8b", "--compare", "cuda,h200")
    assert code == 0 and "only 60.00 GiB of 80.00 GiB are available" in " ".join(out.split())


def test_python_refuses_what_the_command_refuses() -> None:
    with pytest.raises(ConfigError, match="unknown setting context; did you mean"):
        hal.plan("llama-3-8b", context=4)
    for value in (0, -1, 1.5, "8k", True):
        with pytest.raises(ConfigError, match="concurrency must be a whole number"):
            hal.plan("llama-3-8b", concurrency=value)
    with pytest.raises(ModelError):
        hal.plan("./nowhere")


def test_config_files_and_folders_are_the_same_model() -> None:
    folder = hal.plan("llama-3-8b", device="h100")
    file = hal.plan("llama-3-8b/config.json", device="h100")
    assert folder.inputs == file.inputs
    Path("llama-3-8b/config.json").rename("other.json")
    assert hal.plan("./other.json", device="h100").inputs == folder.inputs


def test_the_hub_cache_is_looked_up_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    revision = "a" * 40
    repository = tmp_path / "cache" / "models--some--llama"
    write_config(repository / "snapshots" / revision, "llama-3-8b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert hal.plan("some/llama", device="h100").fits


def test_weight_files_are_checked_by_their_headers(tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from hal.tiny import path

    folder = tmp_path / "tiny"
    shutil.copytree(path(), folder)
    same = hal.plan(str(folder), device="h100")
    assert same.model.header_elements == same.model.shape.num_parameters
    assert not any("weight files" in note for note in same.notes)
    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = torch.zeros(300_000)
    save_file(tensors, folder / "model.safetensors")
    (note,) = (n for n in hal.plan(str(folder), device="h100").notes if "weight files" in n)
    assert "(+7.4%); the plan follows config.json" in note
    (folder / "model.safetensors").write_bytes(b"short")
    (note,) = (n for n in hal.plan(str(folder), device="h100").notes if "headers" in n)
    assert note.startswith("tensor headers were not checked: ")


def test_help_needs_no_torch_and_no_numpy() -> None:
    code = (
        "import sys; from hal.cli import info\n"
        "try: info.main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--concurrency N" in done.stdout


def test_a_plan_for_what_the_engine_cannot_run_needs_no_torch(tmp_path: Path) -> None:
    write_config(tmp_path / "gemma-2-9b", "gemma-2-9b")
    code = (
        "import sys, hal\n"
        "assert hal.plan('gemma-2-9b', device='h100').fits\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_shows_what_is_printed(capsys: Said, tmp_path: Path) -> None:
    write_config(tmp_path / "llama-3-70b", "llama-3-70b")
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    examples = re.findall(r"```\n\$ hal-info plan (.+)\n((?:.*\n)+?)```", page)
    assert len(examples) >= 3
    for command, printed in examples:
        _, out, err = ask(capsys, *command.split())
        assert printed == out + err, command


def test_kernel_wishes_are_those_of_start_up(capsys: Said) -> None:
    small = ask(capsys, "hal-tiny", "--device", "avx512-bf16", "--json")
    wished = ("--kernel", "mlp_block=composed", "--json")
    large = ask(capsys, "hal-tiny", "--device", "avx512-bf16", *wished)
    activations = [json.loads(out)["memory"]["activation_bytes"] for _, out, _ in (small, large)]
    assert activations[0] < activations[1], "the composed block keeps gate and up apart"
    code, _, err = ask(capsys, "hal-tiny", "--device", "v100", "--dtype", "bfloat16", "--strict")
    assert code == 2 and "--strict refuses upcast kernels" in err
    code, out, _ = ask(capsys, "hal-tiny", "--device", "2xh100", "--strict")
    assert code == 0 and "change nothing here" in " ".join(out.split())
