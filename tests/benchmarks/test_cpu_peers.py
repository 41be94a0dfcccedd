"""The command line: one message for what is wrong, and nothing measured on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

import cpu_peers
import pytest


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The only line on stderr of a run that ends with 2."""
    with pytest.raises(SystemExit) as ended:
        cpu_peers.main(argv)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--arms", "ours,onnx"), "argument --arms: 'onnx' is not among ours, transformers,"),
        (("--arms", "openvino@fp8"), "argument --arms: 'fp8' is not among bf16, int8, int4"),
        (("--cases", "decode-2"), "'decode-2' is not among decode-1, prefill-1024,"),
        (("--weights", "fp8"), "'fp8' is not among bf16, int8, int4"),
        (("--weights", ","), "',' is not among bf16, int8, int4"),
        (("--shape", "gpt-5"), "argument --shape: invalid choice: 'gpt-5'"),
        (("--pairs", "0"), "'0' is not a whole number of at least 1"),
        (("--threads", "two"), "'two' is not a whole number of at least 1"),
        (("--quiet",), "unrecognized arguments: --quiet"),
    ],
)
def test_wrong_flags(argv: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, *argv)
    assert part in line and line.startswith("cpu_peers.py: ") and line.endswith("see --help")


def test_more_threads_than_cores_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    line = failure(capsys, "--threads", str(cores + 1))
    assert f"{cores + 1} threads on {cores} cores" in line


def test_choices_keep_the_order_of_the_table() -> None:
    options = cpu_peers.parser().parse_args(["--arms", "llama.cpp@bf16, ours@int4-g128,ours"])
    names = [contender.name for contender in options.arms]
    assert names == ["ours@int4-g128", "ours", "llama.cpp@bf16"]


def test_the_list_shows_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_peers.main(["--list", "--cache", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if "not installed; run: cpu_peers.py --install" in line]
    assert len(missing) == len(cpu_peers.ARMS) - 1
    assert any(line.startswith("case     mixed-64      64 x") for line in lines)


def test_a_busy_machine_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a run begins with: a broken check must fail here and not measure for an hour.
    monkeypatch.delattr("record.header")
    argv = ["--load-limit", "-1", "--cache", str(tmp_path), "--out", str(tmp_path / "out.json")]
    assert cpu_peers.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "above --load-limit -1" in line
    assert list(tmp_path.iterdir()) == []
