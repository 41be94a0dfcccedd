"""hal-info conform: the table, the report file, exit codes, and what is refused before it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.cli import info
from hal.cli.info.conform_report import checkout_commit
from hal.cli.info.report_file import ReportFile
from hal.conformance.cases import cases_by_op
from hal.errors import ConfigError
from hal.kernels import register_all
from hal.kernels.reference.elementwise import add_reference
from hal.select import OPS, Kernel, Traits

register_all()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAL_DEVICE", "HAL_OP", "HAL_KERNEL", "HAL_QUICK", "HAL_REPORT", "HAL_SEEDS"):
        monkeypatch.delenv(name, raising=False)


def conform(*arguments: str) -> int:
    return info.main(["conform", "--device", "null", *arguments])


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def read(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text())
    assert isinstance(data, dict)
    return data


@pytest.fixture
def wrong_add(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An `add` that is a tenth too large."""

    def add(x: Any, y: Any, out: Any) -> None:
        add_reference(x, y, out)
        out.mul_(1.1)

    kernel = Kernel("add", "wrong", Traits(preference=1), lambda _p, _b: add, add)
    monkeypatch.setitem(OPS["add"].kernels, "wrong", kernel)
    yield


def test_one_op_passes_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert conform("--op", "add", "--op", "store", "--report", str(path)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "passed: 15 cases passed, 0 failed, 0 missing" in out
    assert "only a part was asked for: ops add, store (no models)" in out
    assert f"Report: {path}" in out
    report = read(path)
    assert (report["schema"], report["report"]) == (1, "conform")
    assert (report["passed"], report["whole"], report["missing"]) == (True, False, [])
    assert report["device"]["device"] == "null"
    assert report["versions"]["torch"]
    (reference, torch_kernel, *_) = report["kernels"]
    assert (reference["op"], reference["kernel"]) == ("add", "reference")
    assert reference["num_passed"] == len(cases_by_op()["add"]) == len(reference["records"])
    assert reference["worst"]["ratio"] == 0 and reference["worst"]["case"]
    assert len(reference["source_hash"]) == 16
    assert torch_kernel["num_passed"] == 0 and torch_kernel["reasons"]
    assert report["not_run"] == ["add torch", "add triton", "store torch"]
    assert names_in(tmp_path) == ["report.json"]


@pytest.mark.usefixtures("wrong_add")
def test_a_failing_kernel_exits_with_1_and_its_worst_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    assert conform("--kernel", "add=wrong", "--report", str(path)) == 1
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith("hal-info conform: add wrong W")
    assert last.endswith("; 5 more failed") and ", limit 0; " in last
    assert "NOT PASSED: 0 cases passed, 6 failed, 0 missing" in out
    report = read(path)
    assert not report["passed"]
    (kernel,) = report["kernels"]
    assert (kernel["num_failed"], kernel["worst"]["ratio"]) == (6, "inf")
    assert {record["verdict"] for record in kernel["records"]} == {"failed"}


def test_a_kernel_that_cannot_run_here_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert conform("--kernel", "sdpa") == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(
        "hal-info conform: not shown: attention sdpa: no case ran: "
    )
    assert "ran on no case here, so nothing is known of them: attention sdpa" in out


def test_quick_runs_every_case_and_every_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    assert conform("--quick", "--report", str(path)) == 0
    report = read(path)
    assert {kernel["op"] for kernel in report["kernels"]} == OPS.keys()
    assert {(m["model"], m["dtype"]) for m in report["models"]} == {
        (model, dtype)
        for model in ("gpt2", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
        for dtype in ("float32", "float16", "bfloat16")
    }
    for model in report["models"]:
        assert model["levels"]["layer"]["num_passed"] == 2
        assert model["levels"]["model"]["num_passed"] == 5
        assert model["kernels"]["attention"] == "reference"
    assert "not applicable: graphs are off: null device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "rmsnorm"], "did you mean rms_norm?"),
        (["--kernel", "refrence"], "did you mean reference?"),
        (["--seeds", "0"], "--seeds must be a whole number of at least 1"),
        (["--seeds", "many"], "invalid int value"),
        (["--quik"], "did you mean --quick?"),
        (["model"], "no MODEL is taken"),
        (["--report", "/nonexistent/folder/report.json"], "cannot be written"),
        (["--report", "/"], "is a folder"),
    ],
)
def test_wrong_flags_are_refused_before_anything_runs(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conform(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_an_unusable_device_exits_with_2_and_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text("older")
    assert info.main(["conform", "--device", "opencl", "--report", str(path)]) == 2
    assert "HAL-E120" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_text() == "older"
    assert names_in(tmp_path) == ["report.json"]


def test_ctrl_c_leaves_the_older_report_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("older")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "hal.cli.info", "conform"]
        + ["--device", "null", "--seeds", "1000", "--report", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The draft is there from the start, so the run has begun when it is.
    while process.poll() is None and len(names_in(tmp_path)) < 2:
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # Interrupted within an import, Python ends itself by the signal: the same 130 in a shell.
    assert process.returncode in (130, -signal.SIGINT)
    assert (out, err.splitlines()[-1]) == ("", "hal-info conform: interrupted")
    assert "Traceback" not in err
    assert path.read_text() == "older"
    assert names_in(tmp_path) == ["report.json"]


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom hal.cli import info\n"
        "try:\n    info.main(['conform', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--report FILE" in done.stdout


def test_a_report_is_written_whole_with_ordinary_rights(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with ReportFile(path) as file:
        assert not path.exists()
        file.write({"schema": 1})
    assert read(path) == {"schema": 1}
    (plain := tmp_path / "plain").write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to("report.json")
    with ReportFile(link) as file:
        file.write({"schema": 1})
    assert link.is_symlink() and read(tmp_path / "report.json") == {"schema": 1}


def test_a_special_file_is_written_in_place() -> None:
    with ReportFile(Path("/dev/null")) as file:
        file.write({"schema": 1})
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_an_error_with_its_reason() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with ReportFile(Path("/dev/full")) as file:
        with pytest.raises(ConfigError, match="No space left"):
            file.write({"schema": 1})


def test_the_commit_is_that_of_the_checkout_that_holds_the_code(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    tracked, untracked = tmp_path / "tracked.py", tmp_path / "installed.py"
    tracked.write_text("")
    untracked.write_text("")
    assert checkout_commit(tracked) == ""
    git("init")
    git("add", "tracked.py")
    git("commit", "-m", "one")
    assert len(checkout_commit(tracked)) == 12
    assert checkout_commit(untracked) == ""
    tracked.write_text("changed = True\n")
    assert checkout_commit(tracked).endswith("-dirty")
