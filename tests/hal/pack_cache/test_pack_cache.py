"""The pack cache against disks, neighbours and files as they are: never wrong bytes, one line."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hal.kernels.reference.linear  # noqa: F401  the module that the weights here claim
from hal.opset.stored import StoredForm
from hal.pack_cache import KeptWeight, PackCache, checkpoint_hash, entry, folder, parallel
from hal.pack_cache.cache import PackedLoad

SIZES = (5 << 20, 3, 1 << 20, 70001)
CONTENT = tuple(bytes([i + 1]) * size for i, size in enumerate(SIZES))
MODULE = "hal.kernels.reference.linear"


class Start:
    """One start: weights in memory of its own, made where the cache does not have them."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        self.checkpoint = tmp_path / "model.safetensors"
        if not self.checkpoint.exists():
            self.checkpoint.write_bytes(b"weights" * 999)
        settings = {"device": "cpu", "release": "1.0", "num_threads": 2}
        layout = changes.pop("layout", "rows")
        tensor = changes.pop("tensor", "from row 0")
        self.memory = [bytearray(size) for size in SIZES]
        self.cache = PackCache(tmp_path / "cache", **{**settings, **changes})
        self.kept = [
            KeptWeight(
                form=StoredForm(layout=layout, parts=tuple(map(memoryview, group))),
                module=MODULE,
                tensors=(f"weight.{index} {tensor}",),
                source_bytes=1 << 30,
            )
            for index, group in enumerate((self.memory[:2], self.memory[2:]))
        ]

    def run(self) -> bool:
        """Whether the weights came from the cache; they are right either way."""
        load = self.cache.open([self.checkpoint], self.kept)
        found = load.is_found and load.read(lambda _: None)
        if not found:
            assert not any(map(any, self.memory)), "a read that failed left its bytes behind"
            for memory, content in zip(self.memory, CONTENT, strict=True):
                memory[:] = content
            load.keep()
        assert tuple(map(bytes, self.memory)) == CONTENT
        return found


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hal")


def only_line(caplog: pytest.LogCaptureFixture, level: int) -> str:
    (record,) = caplog.records
    assert record.levelno == level
    text = record.getMessage()
    caplog.clear()
    return text


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.packed"))


def leftovers(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.part"))


def test_a_second_start_reads_what_the_first_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not Start(tmp_path).run()
    assert "kept in cache" in only_line(caplog, logging.INFO)
    assert Start(tmp_path).run()
    assert "packed weights from cache" in only_line(caplog, logging.INFO)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [{"layout": "columns"}, {"tensor": "from row 1"}, {"device": "gpu"}, {"release": "1.1"}],
)
def test_what_shapes_the_bytes_is_in_the_key(tmp_path: Path, change: dict[str, str]) -> None:
    Start(tmp_path).run()
    assert not Start(tmp_path, **change).run()
    assert Start(tmp_path).run()
    assert len(entries(tmp_path)) == 2


def test_other_code_makes_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.evidence.source import KernelSource
    from hal.pack_cache import cache

    Start(tmp_path).run()
    changed = KernelSource(hash="changed", compiler="")
    monkeypatch.setattr(cache, "source_of", lambda _: changed)
    assert not Start(tmp_path).run()


def test_code_of_unknown_source_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hal.pack_cache import cache

    monkeypatch.setattr(cache, "source_of", lambda _: None)
    assert not Start(tmp_path).run()
    assert caplog.records == []
    assert not (tmp_path / "cache").exists()


def test_other_content_under_the_same_name_and_size(tmp_path: Path) -> None:
    first = Start(tmp_path)
    first.run()
    first.checkpoint.write_bytes(b"changed" * 999)
    assert not Start(tmp_path).run()


def header_bytes() -> int:
    return 4096


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 0x10
        path.write_bytes(content)

    return damage


def cut_to(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def zeros_in_the_middle(path: Path) -> None:
    """What a power cut leaves of a file that was renamed before its blocks were written."""
    with path.open("r+b") as file:
        file.seek(header_bytes() + (2 << 20))
        file.write(bytes(1 << 20))


def another_entry(path: Path) -> None:
    """A sound entry under a name that is not its own."""
    Start(path.parent.parent, layout="swor").run()  # its key is as long
    (other,) = (p for p in path.parent.glob("*.packed") if p != path)
    other.replace(path)


DAMAGES = {
    "magic": flip(0),
    "version of the format": flip(7),
    "length of the key": flip(9),
    "number of chunks": flip(17),
    "key": flip(40),
    "checksum of the header": flip(24 + 8),
    "first byte of data": flip(header_bytes()),
    "last byte": flip(-1),
    "data in the middle": flip(header_bytes() + (3 << 20) + 17),
    "zeros": zeros_in_the_middle,
    "empty": cut_to(0),
    "cut within the header": cut_to(30),
    "cut within the data": cut_to(3 << 20),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": grow,
    "of something else": another_entry,
    "others may write it": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    Start(tmp_path).run()
    (path,) = entries(tmp_path)
    sound = path.read_bytes()
    damage(path)
    assert path.read_bytes() != sound or damage is DAMAGES["others may write it"]
    caplog.clear()
    assert not Start(tmp_path).run()
    line = only_line(caplog, logging.WARNING)
    assert "were made again: " in line and str(path) in line
    assert path.read_bytes() == sound
    assert Start(tmp_path).run()


def test_nothing_reads_on_after_a_damaged_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that still fills memory would overwrite what is loaded there instead."""
    Start(tmp_path).run()
    (path,) = entries(tmp_path)
    flip(header_bytes())(path)
    original = parallel.read_exactly
    at_work: list[int] = []

    def slow(fd: int, target: memoryview, offset: int) -> bool:
        if offset <= header_bytes():
            return original(fd, target, offset)
        at_work.append(offset)
        time.sleep(0.05)
        at_work.remove(offset)
        return original(fd, target, offset)

    def check(load: PackedLoad) -> None:
        assert at_work == []
        clear(load)

    clear = PackedLoad._clear
    monkeypatch.setattr(entry, "read_exactly", slow)
    monkeypatch.setattr(PackedLoad, "_clear", check)
    assert not Start(tmp_path).run()


@pytest.mark.parametrize("at", range(0, 4096, 97))
def test_no_byte_of_the_header_is_unchecked(tmp_path: Path, at: int) -> None:
    """Only the padding behind it may change."""
    Start(tmp_path).run()
    (path,) = entries(tmp_path)
    is_padding = not any(path.read_bytes()[at:4096])
    flip(at)(path)
    assert Start(tmp_path).run() is is_padding


def test_an_entry_of_another_user_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(tmp_path).run()
    (path,) = entries(tmp_path)
    caplog.clear()
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not Start(tmp_path).run()
    assert "another user" in only_line(caplog, logging.WARNING)


def test_a_folder_in_place_of_the_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Start(tmp_path).run()
    (path,) = entries(tmp_path)
    path.unlink()
    path.mkdir()
    caplog.clear()
    assert not Start(tmp_path).run()
    line = only_line(caplog, logging.WARNING)
    assert "could not be used" in line and "not kept" in line
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("place", ["a file", "/proc/hal-cache", "/dev/null/below"])
def test_a_folder_that_cannot_be_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "a file").write_text("not a folder")
    start = Start(tmp_path)
    start.cache.folder = tmp_path / place
    assert not start.run()
    line = only_line(caplog, logging.WARNING)
    assert line.startswith(f"packed weights are not kept in {tmp_path / place}: ")
    assert line.endswith("Set HAL_CACHE_FOLDER to a folder on another disk, or --no-cache")


def test_a_read_only_folder_is_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(tmp_path).run()
    caplog.clear()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert Start(tmp_path).run()
    only_line(caplog, logging.INFO)
    assert not Start(tmp_path, layout="columns").run()
    assert "Read-only file system" in only_line(caplog, logging.WARNING)


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Path]:
    """A folder that other users can reach, as those of pytest cannot be."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        Start(Path(name)).checkpoint.chmod(0o644)
        yield Path(name)


def test_a_folder_without_permission(open_to_all: Path) -> None:
    """Real permissions: root is given up in a child, since nothing is forbidden to it."""
    (open_to_all / "cache").mkdir(mode=0o555)
    done = child(open_to_all, "Start(path).run()", user=65534 if os.geteuid() == 0 else None)
    assert "not kept" in done.stderr and "Permission denied" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("after", [0, 2, 5])
def test_a_disk_that_fills_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    calls: list[int] = []
    original = parallel.write_exactly

    def write(fd: int, source: memoryview, offset: int) -> None:
        calls.append(offset)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(fd, source, offset)

    monkeypatch.setattr(entry, "write_exactly", write)
    assert not Start(tmp_path).run()
    assert "No space left on device" in only_line(caplog, logging.WARNING)
    assert entries(tmp_path) == leftovers(tmp_path) == []


def test_a_file_size_limit(tmp_path: Path) -> None:
    """A real write that fails half way."""
    limit = 2 << 20
    done = child(tmp_path, "Start(path).run()", file_limit=limit)
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.returncode == 0
    assert entries(tmp_path) == leftovers(tmp_path) == []


def test_too_little_room_is_seen_before_anything_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(tmp_path).run()
    caplog.clear()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=8 << 20))
    monkeypatch.setattr(entry, "write_exactly", None)
    assert not Start(tmp_path, layout="columns").run()
    line = only_line(caplog, logging.WARNING)
    assert "they take 6.07 MiB and the cache may hold 3." in line
    assert len(entries(tmp_path)) == 1, "nothing may be deleted for what cannot be kept"


def test_the_entry_used_longest_ago_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MOST_BYTES", 20 << 20)  # three entries
    for age, layout in enumerate(("third", "second", "first")):
        Start(tmp_path, layout=layout).run()
        newest = max(entries(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (0, time.time() - 1000 * (age + 1)))
    Start(tmp_path, layout="first").run()  # used again: now "second" is the oldest
    assert not Start(tmp_path, layout="fourth").run()
    assert len(entries(tmp_path)) == 3
    assert Start(tmp_path, layout="first").run()
    assert Start(tmp_path, layout="third").run()
    assert not Start(tmp_path, layout="second").run()


def test_two_starts_at_once(tmp_path: Path) -> None:
    """Each writes a file of its own; whichever name stays, the entry is whole."""
    statements = "print('ready', flush=True); input(); Start(path).run()"
    Start(tmp_path).checkpoint.touch()
    children = [spawn(tmp_path, statements) for _ in range(3)]
    for process in children:
        assert process.stdout is not None
        process.stdout.readline()
    for process in children:
        _, errors = process.communicate("go\n", timeout=60)
        assert process.returncode == 0, errors
    assert len(entries(tmp_path)) == 1
    assert leftovers(tmp_path) == []
    assert Start(tmp_path).run()


def test_a_killed_writer_leaves_no_entry_and_is_swept_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    statements = (
        "import signal\n"
        "entry.write_exactly = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Start(path).run()"
    )
    assert child(tmp_path, statements).returncode == -signal.SIGKILL
    assert entries(tmp_path) == []
    (part,) = leftovers(tmp_path)
    Start(tmp_path, layout="columns").run()
    assert leftovers(tmp_path) == [part], "its writer may still be at work"
    os.utime(part, (0, time.time() - 3600))
    assert not Start(tmp_path).run()
    assert leftovers(tmp_path) == []


def test_a_checkpoint_that_changes_while_it_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashed before, loaded after: the bytes must not go under the old name."""
    monkeypatch.setattr(checkpoint_hash, "_SETTLED_NS", -(10**15))
    start = Start(tmp_path)
    load = start.cache.open([start.checkpoint], start.kept)
    start.checkpoint.write_bytes(b"changed" * 999)
    load.keep()
    assert "files changed while" in only_line(caplog, logging.WARNING)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("source_bytes", [(64 << 20) - 2, sum(SIZES)])
def test_what_saves_nothing_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source_bytes: int
) -> None:
    start = Start(tmp_path)
    start.kept = [replace(weight, source_bytes=source_bytes // 2) for weight in start.kept]
    assert not start.run()
    assert caplog.records == []
    assert not (tmp_path / "cache").exists()


def test_an_error_that_is_not_the_disks_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "write_exactly", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Start(tmp_path).run()
    assert entries(tmp_path) == leftovers(tmp_path) == []


PREAMBLE = f"""
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("cases", {str(Path(__file__))!r})
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)
from hal.pack_cache import entry
Start, path = cases.Start, Path(sys.argv[1])
"""


def spawn(
    path: Path, statements: str, *, user: int | None = None, file_limit: int | None = None
) -> subprocess.Popen[str]:
    """Python that has `Start` and `path`; without a logging set-up, warnings go to stderr."""
    limits = "" if file_limit is None else f"resource.setrlimit(1, ({file_limit},) * 2)\n"
    gives_up = "" if user is None else f"os.setgid({user}); os.setuid({user})\n"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"{PREAMBLE}import resource\n{limits}{gives_up}{statements}"]
        + [str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child(path: Path, statements: str, **how: Any) -> subprocess.CompletedProcess[str]:
    process = spawn(path, statements, **how)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


assert resource.RLIMIT_FSIZE == 1, "the number in spawn()"
