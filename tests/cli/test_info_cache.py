"""`hal-info cache`: what a folder of packed weights holds, whatever is in it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hal
from hal.cli.info import cache, command
from hal.devices.host import cpu_capabilities
from hal.opset.stored import StoredForm
from hal.pack_cache import KeptWeight, PackCache, checkpoint_hash
from hal.pack_cache.cache import device_label
from hal.weights import WEIGHT_FORMATS

MODULE = "hal.kernels.reference.linear"
Keep = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAL_CACHE_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint_hash, "_SETTLED_NS", -(10**15))
    hal.kernels.register_all()
    return tmp_path / "cache"


@pytest.fixture
def keep(folder: Path) -> Keep:
    """Writes an entry as a start does, last used at `used_at`."""

    def write(checkpoint: Path, used_at: int, **changes: Any) -> Path:
        file = checkpoint / "model.safetensors"
        checkpoint.mkdir(exist_ok=True)
        file.write_bytes(checkpoint.name.encode())
        format = WEIGHT_FORMATS[changes.pop("format", "int4")]
        settings = {"device": device_label(cpu_capabilities()), "release": hal.__version__}
        made = PackCache(folder, num_threads=1, **{**settings, **changes})
        form = StoredForm(layout=f"rows of {format!r}", parts=(memoryview(bytearray(1 << 20)),))
        weight = KeptWeight(form=form, module=MODULE, tensors=("w",), source_bytes=1 << 30)
        before = set(folder.glob("*.packed"))
        made.open([file], [weight]).keep()
        (entry,) = set(folder.glob("*.packed")) - before
        os.utime(entry, (used_at, used_at))
        return entry

    return write


def listed(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert command.main(["cache", "--json", *flags]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["schema"] == cache.SCHEMA_VERSION
    return report


def test_entries_say_what_they_are_the_latest_first(
    tmp_path: Path, keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    older = keep(tmp_path / "small", 1000)
    newer = keep(tmp_path / "large", 2000, format="int8")
    report = listed(capsys)
    assert [e["path"] for e in report["entries"]] == [str(newer), str(older)]
    assert [e["model"] for e in report["entries"]] == [
        str(tmp_path / n) for n in ("large", "small")
    ]
    assert [e["format"] for e in report["entries"]] == ["int8", "int4"]
    assert [e["state"] for e in report["entries"]] == ["ok", "ok"]
    assert [e["used_at"] for e in report["entries"]] == [2000, 1000]
    sizes = [path.stat().st_size for path in (newer, older)]
    assert [e["num_bytes"] for e in report["entries"]] == sizes
    assert report["num_bytes"] == sum(sizes)
    assert report["limit_bytes"] > 0


def test_the_text_has_the_same(
    tmp_path: Path, folder: Path, keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path / "small", 1000, release="0.0.1")
    assert command.main(["cache"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{folder}\n1 entry, 1.0")
    assert "int4" in text and "stale" in text and str(tmp_path / "small") in text
    assert f"made by hal 0.0.1; this is {hal.__version__}" in text


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({"release": "0.0.1"}, "stale", "made by hal 0.0.1"),
        ({"device": "x86_other: sse"}, "other device", "made for x86_other: sse"),
    ],
)
def test_what_a_start_would_not_read_says_why(
    tmp_path: Path,
    keep: Keep,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    state: str,
    reason: str,
) -> None:
    keep(tmp_path / "small", 1000, **change)
    (entry,) = listed(capsys)["entries"]
    assert entry["state"] == state
    assert reason in entry["reason"]


def test_changed_kernels_make_an_entry_stale(
    tmp_path: Path, keep: Keep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hal.pack_cache import listing

    keep(tmp_path / "small", 1000)
    monkeypatch.setattr(listing, "sources_of", lambda names: dict.fromkeys(names, "another"))
    (entry,) = listed(capsys)["entries"]
    assert (entry["state"], entry["reason"]) == ("stale", f"made by other sources of {MODULE}")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"", "another format"),
        (b"HALPACK", "another format"),
        (struct.pack("<8sQQ", b"HALPACK\x01", 1 << 62, 1), "header is damaged"),
        (struct.pack("<8sQQ", b"HALPACK\x01", 2, 0) + b"{}\x00\x00\x00\x00", "header is damaged"),
    ],
)
def test_damaged_entries_are_listed_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str], start: bytes, reason: str
) -> None:
    folder.mkdir()
    (folder / "0.packed").write_bytes(start)
    (entry,) = listed(capsys)["entries"]
    assert entry["state"] == "unusable"
    assert reason in entry["reason"]


def test_an_entry_that_others_may_write_is_unusable(
    tmp_path: Path, keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path / "small", 1000).chmod(0o666)
    (entry,) = listed(capsys)["entries"]
    assert (entry["state"], entry["model"]) == ("unusable", "")


def test_a_missing_folder_is_empty_and_is_not_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ([], ["--clear"], ["--max-bytes", "1MiB"]):
        report = listed(capsys, *flags)
        assert (report["entries"], report["deleted"], report["limit_bytes"]) == ([], [], None)
    assert command.main(["cache"]) == 0
    assert "not there yet" in capsys.readouterr().out
    assert not folder.exists()


def test_max_bytes_deletes_what_was_used_longest_ago(
    tmp_path: Path, keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [keep(tmp_path / f"m{i}", used_at) for i, used_at in enumerate((3000, 1000, 2000))]
    size = paths[0].stat().st_size
    report = listed(capsys, "--max-bytes", f"{2 * size}B")
    assert [e["path"] for e in report["deleted"]] == [str(paths[1])]
    assert [e["path"] for e in report["entries"]] == [str(paths[0]), str(paths[2])]
    assert listed(capsys, "--clear")["entries"] == []
    assert not any(path.exists() for path in paths)


def test_what_cannot_be_deleted_or_read_is_an_error_with_the_folder(
    tmp_path: Path,
    folder: Path,
    keep: Keep,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(tmp_path / "small", 1000)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert listed(capsys)["entries"]
    assert command.main(["cache", "--clear"]) == 2
    error = capsys.readouterr().err
    assert f"the cache in {folder}: Read-only file system" in error


def test_a_file_in_place_of_the_folder_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_text("")
    assert command.main(["cache"]) == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--clear", "--max-bytes", "1GiB"], ["--max-bytes", "5"]])
def test_contradictions_are_refused_before_anything_is_deleted(
    tmp_path: Path, keep: Keep, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    path = keep(tmp_path / "small", 1000)
    assert command.main(["cache", *flags]) == 2
    assert path.exists()
