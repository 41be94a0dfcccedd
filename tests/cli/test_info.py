"""hal-info: every device with its reason, every op with its kernel, and honest exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from recorded_accelerator import MI300X

from hal.cli import info
from hal.cli.info.report import InfoReport, InfoRequest, collect
from hal.cli.info.sites import example_sites
from hal.cli.info.text import render
from hal.cli.installation import Version, compiler_version, missing_parts
from hal.device import Device
from hal.devices import rocm
from hal.devices.registry import CpuVendor, NullVendor
from hal.devices.vendor import Vendor
from hal.dtypes import DType
from hal.report import DeviceReport
from hal.select import OPS


class HangingVendor(Vendor):
    """A driver that did not answer, as the probe reports it."""

    name = "cuda"

    def probe(self) -> tuple[DeviceReport, ...]:
        return (DeviceReport(spec="cuda", reason="the driver hangs", remedy="reboot the machine"),)

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise NotImplementedError


VENDORS: Mapping[str, Vendor] = {v.name: v for v in (HangingVendor(), CpuVendor(), NullVendor())}


def collected(**request: Any) -> InfoReport:
    return collect(InfoRequest(**request), VENDORS)


def ops_of(report: InfoReport, device: str) -> dict[str, tuple[str, dict[str, str]]]:
    """op -> (chosen kernel, rejected kernel -> reason)."""
    (kernels,) = (k for k in report.kernels if k.device == device)
    return {s.op: (s.kernel, {r.kernel: r.reason for r in s.rejected}) for s in kernels.sites}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAL_DEVICE", raising=False)


def test_json_has_every_device_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--json", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == 2
    assert (said["requested"], said["chosen"], said["error"]) == ("cpu", "cpu", None)
    names = {d["device"].partition(":")[0] for d in said["devices"]}
    assert names >= {"cuda", "rocm", "opencl", "cpu", "null"}
    assert all(d["usable"] != bool(d["reason"]) for d in said["devices"])
    assert said["versions"]["torch"]
    assert said["architectures"] == [
        "gpt2",
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    ]
    (cpu,) = (d for d in said["devices"] if d["device"] == "cpu")
    assert cpu["capabilities"]["memory"]["total_bytes"] > 0
    assert {k["device"] for k in said["kernels"]} >= {"cpu", "null"}


def test_what_an_affinity_means_is_told_with_its_reason() -> None:
    report = collected(device="cpu", cpu_affinity="none")
    (cpu,) = (k for k in report.kernels if k.device == "cpu")
    said = json.loads(json.dumps(cpu.as_json()))
    assert said["cpu_affinity"]["value"] == "none"
    assert "set by the user" in said["cpu_affinity"]["reason"]
    assert len(said["memory_nodes"]) != 1  # one node is not worth a line
    assert "--cpu-affinity means none: set by the user" in render(report)


def test_an_affinity_that_cannot_be_names_the_allowed_cpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert info.main(["--cpu-affinity", "60000"]) == 2
    error = capsys.readouterr().err
    assert "names 60000" in error and "allowed are " in error


def test_every_op_has_a_kernel_and_a_reason_against_each_other_one() -> None:
    report = collected()
    for device in ("cpu", "null"):
        ops = ops_of(report, device)
        assert ops.keys() == OPS.keys()
        for name, (kernel, rejected) in ops.items():
            assert {kernel, *rejected} == OPS[name].kernels.keys()
            assert all(rejected.values())


def test_the_example_covers_every_op_once() -> None:
    assert sorted(site.op.name for site in example_sites(DType.FLOAT32)) == sorted(OPS)


def test_reasons_carry_the_observed_value() -> None:
    report = collected(device="cpu", dtype="float16")
    kernel, rejected = ops_of(report, "cpu")["linear"]
    assert kernel == "reference"
    assert "float16" in rejected["torch"]


def test_a_kernel_override_is_shown_as_the_reason() -> None:
    report = collected(kernel=("rms_norm=reference",))
    kernel, rejected = ops_of(report, "cpu")["rms_norm"]
    assert kernel == "reference"
    assert "--kernel rms_norm=reference was given" in rejected["torch"]


class CardVendor(Vendor):
    """One accelerator."""

    name = "rocm"

    def probe(self) -> tuple[DeviceReport, ...]:
        caps = rocm.capabilities(MI300X, MI300X.total_memory, "7.0")
        return (DeviceReport(spec="rocm:0", capabilities=caps),)

    def open(self, report: DeviceReport, detail: str) -> Device:
        raise NotImplementedError


def test_deterministic_and_strict_reach_the_selection() -> None:
    report = collect(
        InfoRequest(deterministic=True, strict=True), {**VENDORS, "rocm": CardVendor()}
    )
    assert report.choice.chosen is not None
    assert report.choice.chosen.report.spec == "rocm:0"
    for device, wish in (("cpu", "--deterministic"), ("rocm:0", "--strict")):
        (kernels,) = (k for k in report.kernels if k.device == device)
        reasons = [r.reason for site in kernels.sites for r in site.rejected]
        reasons += [op.reason for op in kernels.without_kernel]
        assert any(wish in reason for reason in reasons), (device, wish)


def test_the_text_marks_the_device_that_would_be_used() -> None:
    text = render(collected())
    lines = text.splitlines()
    assert "  cuda      not usable: the driver hangs" in lines
    assert "            -> reboot the machine" in lines
    assert "* cpu       usable" in lines
    assert any(line.startswith("* --device auto means cpu:") for line in lines)
    assert "Kernels on cpu" in text
    assert all(len(line) <= 100 for line in lines)


def test_an_unusable_device_still_gets_the_report_but_no_choice() -> None:
    report = collected(device="cuda")
    assert report.choice.chosen is None
    assert report.choice.error is not None
    assert "the driver hangs" in report.choice.error.message
    text = render(report)
    assert "Kernels on" not in text and "* " not in text
    error = report.as_json()["error"]
    assert isinstance(error, dict) and error["code"] == "HAL-E120"


@pytest.mark.parametrize(
    ("argv", "last_words"),
    [
        (["--device", "opencl"], "--device opencl cannot be used"),
        (["--device", "cudaa"], "Did you mean --device cuda?"),
        (["--device", "cuda:0,1"], "not supported yet: tensor parallel"),
        (["--device", "null:h10"], "unknown device profile 'h10'; did you mean h100"),
        (["--device", "null:h100,oom@x"], "faults: oom, nan, hang, crash"),
        (["--kernel", "linear=nonsense"], "its kernels are"),
        (["--dtype", "int8"], "cannot hold activations"),
        (["--jsn"], "did you mean --json?"),
        (["hal-tiny"], "hal-info plan hal-tiny"),
        (["expain"], "did you mean hal-info explain?"),
        (["--memory", "0.5"], "unknown flag --memory"),
        (["--gpu-memory-utilization", "0.5"], "not supported yet: hal-info"),
    ],
)
def test_exit_code_2_and_the_cause_last(
    argv: list[str], last_words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert info.main(argv) == 2
    assert last_words in capsys.readouterr().err.splitlines()[-1]


def test_the_environment_of_other_commands_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAL_MODEL", "some-model")
    monkeypatch.setenv("HAL_DEVICE", "null")
    assert info.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "null"


@pytest.mark.parametrize(
    ("compiler", "command"),
    [("g++ 12.2", "make clean install"), ("", "apt-get install g++ && make clean install")],
)
def test_missing_native_kernels_name_the_command(compiler: str, command: str) -> None:
    (part,) = missing_parts((Version("c++", compiler),), native_module="hal.kernels.cpu._absent")
    assert part.what.startswith("native CPU kernels")
    assert part.command == command


def test_nothing_is_missing_where_the_module_is_there() -> None:
    assert missing_parts((), native_module="json") == ()


def test_a_program_that_is_not_installed_has_no_version() -> None:
    assert compiler_version("no-such-compiler") == Version("no-such-compiler", "")
    assert compiler_version(sys.executable).version.startswith("Python 3.")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom hal.cli import info\n"
        "try:\n    info.main(['--help'])\n"
        "except SystemExit as done:\n    sys.exit(done.code or 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_a_pose_shows_the_kernels_of_what_it_stands_for() -> None:
    report = collect(InfoRequest(device="null:mi300x"), {"null": NullVendor()})
    assert report.choice.chosen is not None
    assert report.choice.chosen.reason.startswith("poses as AMD Instinct MI300X")
    run, posed = report.kernels
    assert (run.device, run.dtype) == ("null", "float32")
    assert (posed.device, posed.dtype) == ("null:mi300x", "bfloat16")
    linear = next(op for op in posed.sites if op.op == "linear")
    assert (linear.kernel, linear.level) == ("torch", "native")
    assert "Kernels on null:mi300x for" in render(report)
