"""Machine code is compiled once, and what the disk holds is never believed without a look."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from hal.env import CACHE_FOLDER
from hal.kernels.rtc.binaries import kept_binary

KEY = {"compiler": "NVRTC 13.0", "driver": "13000", "options": "-arch=sm_90", "text": "void f();"}
BINARY = b"\x7fELF" + bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_FOLDER, str(tmp_path))
    return tmp_path / "compiled"


class Compiler:
    """Counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self) -> bytes:
        self.num_calls += 1
        return BINARY


def test_a_second_start_reads(folder: Path) -> None:
    compiler = Compiler()
    assert kept_binary(KEY, compiler) == kept_binary(KEY, compiler) == BINARY
    assert compiler.num_calls == 1 and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", KEY)
def test_another_compiler_arch_or_source_is_compiled(folder: Path, name: str) -> None:
    compiler = Compiler()
    kept_binary(KEY, compiler)
    kept_binary({**KEY, name: "other"}, compiler)
    assert compiler.num_calls == 2 and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another", "writable by others"])
def test_what_is_damaged_is_compiled_again(folder: Path, damage: str) -> None:
    compiler = Compiler()
    kept_binary(KEY, compiler)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-1])
        case "flipped":
            path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "empty":
            path.write_bytes(b"")
        case "of another":
            path.write_bytes(bytes(32) + content[32:])
        case _:
            path.chmod(0o666)
    assert kept_binary(KEY, compiler) == BINARY and compiler.num_calls == 2
    assert kept_binary(KEY, compiler) == BINARY and compiler.num_calls == 2


def test_a_home_that_cannot_be_written_to_costs_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(CACHE_FOLDER, str(blocked))
    compiler = Compiler()
    with caplog.at_level(logging.INFO, "hal"):
        assert kept_binary(KEY, compiler) == BINARY
    assert "not kept" in caplog.text and str(blocked) in caplog.text


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    compiler = Compiler()
    assert kept_binary(KEY, compiler) == kept_binary(KEY, compiler) == BINARY
    assert compiler.num_calls == 2


KEEP_OFTEN = """
import sys
from hal.kernels.rtc.binaries import kept_binary
for n in range(50):
    binary = bytes([n]) * 5000
    assert kept_binary({"n": str(n)}, lambda: binary) == binary
"""


def test_two_processes_at_once(folder: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", KEEP_OFTEN]) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert len(list(folder.iterdir())) == 50
