"""A device package from outside, by the commands its author and its users run."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_serving import serving
from sample_package import ROOT, SamplePackage

from hal.device import DEVICE_INTERFACE_VERSION
from hal.kernels import register_from


@pytest.fixture
def sample(tmp_path: Path) -> SamplePackage:
    return SamplePackage(tmp_path)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.rstrip().splitlines()[-1]


def test_it_conforms_and_its_own_kernel_ran(sample: SamplePackage) -> None:
    report = sample.folder / "report.json"
    done = sample.run("hal.cli.info", "conform", "--device", "sample", "--report", str(report))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    assert (found["passed"], found["whole"], found["missing"]) == (True, True, [])
    assert found["device"]["capabilities"]["arch"] == "s1"
    (own,) = (k for k in found["kernels"] if (k["op"], k["kernel"]) == ("rms_norm", "sample"))
    assert (own["num_passed"], own["num_failed"], own["num_skipped"]) == (18, 0, 9)
    assert own["reasons"] == ["sample cards do not add float16"]
    assert len(own["source_hash"]) == 16
    chosen = {(m["model"], m["dtype"]): m["kernels"].get("rms_norm") for m in found["models"]}
    assert chosen["llama", "bfloat16"] == "sample"
    assert chosen["llama", "float16"] == "torch"
    assert chosen["gpt2", "float32"] is None


def test_an_error_in_its_kernel_is_found(sample: SamplePackage) -> None:
    sample.edit("kernels.py", "scale * weight.float()", "scale * weight.float() * 1.001")
    done = sample.run("hal.cli.info", "conform", "--device", "sample", "--op", "rms_norm")
    assert done.returncode == 1
    assert last_line(done).startswith("hal-info conform: rms_norm sample ")


def test_hal_info_lists_it_with_its_kernel(sample: SamplePackage) -> None:
    done = sample.run("hal.cli.info", "--device", "sample", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["chosen"] == "sample:0"
    (kernels,) = (k for k in said["kernels"] if k["device"] == "sample:0")
    by_op = {site["op"]: site for site in kernels["sites"]}
    assert by_op["rms_norm"]["kernel"] == "sample"
    (cpu,) = (k for k in said["kernels"] if k["device"] == "cpu")
    (norm,) = (site for site in cpu["sites"] if site["op"] == "rms_norm")
    reasons = {r["kernel"]: r["reason"] for r in norm["rejected"]}
    assert reasons["sample"].startswith("runs on sample cards only")


def test_it_generates_what_the_null_device_generates(sample: SamplePackage) -> None:
    """Same model, same prompt, float32, greedy: other kernels, the same text."""
    arguments = ["hal.cli.run", "--prompt", "2+2=", "--temperature", "0", "--max-tokens", "16"]
    answers = [
        sample.run(*arguments, "--dtype", "float32", "--device", device)
        for device in ("sample", "null")
    ]
    assert [answer.returncode for answer in answers] == [0, 0], answers[0].stderr
    assert answers[0].stdout == answers[1].stdout != ""


def test_it_serves(sample: SamplePackage) -> None:
    with serving(["--device", "sample"], **sample.environ()) as server:
        server.wait_ready()
        body = {"model": "hal-tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 4
        plan = server.get("/hal/plan").json()
        assert plan["device"]["name"] == "Sample Card S1"
        assert ("rms_norm", "sample") in {(k["op"], k["kernel"]) for k in plan["kernels"]}


@pytest.mark.parametrize("version", [DEVICE_INTERFACE_VERSION - 1, DEVICE_INTERFACE_VERSION + 1])
@pytest.mark.parametrize(
    "command", [("hal.cli.info", "conform"), ("hal.cli.run", "--prompt", "x")], ids=" ".join
)
def test_another_interface_version_is_refused(
    sample: SamplePackage, version: int, command: tuple[str, ...]
) -> None:
    sample.edit("device.py", "interface_version = 3", f"interface_version = {version}")
    done = sample.run(*command, "--device", "sample")
    assert (done.returncode, done.stdout) == (2, "")
    said = last_line(done)
    assert f"its package was written for version {version} of hal's device interface" in said
    assert f"this hal has version {DEVICE_INTERFACE_VERSION}" in said
    assert (
        "Install a release of the package" if version < DEVICE_INTERFACE_VERSION else "Upgrade hal"
    ) in said


def test_no_card_is_a_reason_with_a_remedy(sample: SamplePackage) -> None:
    done = sample.run("hal.cli.info", "conform", "--device", "sample", SAMPLE_CARDS="0")
    assert done.returncode == 2
    assert "no sample card is plugged in. Remedy: unset SAMPLE_CARDS" in last_line(done)


def test_kernels_that_cannot_be_imported_harm_no_other_device(sample: SamplePackage) -> None:
    sample.edit("kernels.py", "import torch\n", "import no_such_library\n")
    done = sample.run("hal.cli.info", "conform", "--device", "null", "--op", "add")
    assert done.returncode == 0, done.stderr
    assert "no kernels from entry point 'sample' = 'hal_sample.kernels'" in done.stderr
    assert "No module named 'no_such_library'" in done.stderr


def test_a_broken_kernel_module_is_left_out_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    point = EntryPoint(name="x", value="no_such_module", group="hal.kernels")
    with caplog.at_level(logging.WARNING, "hal"):
        register_from([point])
    assert "no kernels from entry point 'x' = 'no_such_module'" in caplog.text


def test_the_walk_through_shows_the_real_files() -> None:
    """Every block of docs/new-device.md that names a file is a part of that file."""
    text = (ROOT / "docs/new-device.md").read_text(encoding="utf-8")
    shown = re.findall(r"^`(tests/sample_device/\S+)`\n+```\w+\n(.*?)^```$", text, re.M | re.S)
    assert len(shown) >= 5
    for name, block in shown:
        file = (ROOT / name).read_text(encoding="utf-8")
        for part in re.split(r"^ *\.\.\.\n", block, flags=re.M):
            assert part.strip("\n") in file, f"{name} has no such lines:\n{part}"
