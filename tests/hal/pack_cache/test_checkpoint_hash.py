"""A file is hashed again whenever anything about it says that it may have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hal.pack_cache import checkpoint_hash
from hal.pack_cache.checkpoint_hash import CheckpointHasher


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * 8192)
    return path


@pytest.fixture
def hasher(tmp_path: Path) -> CheckpointHasher:
    return CheckpointHasher(tmp_path / "hashes", num_threads=2)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written long ago."""
    monkeypatch.setattr(checkpoint_hash, "_SETTLED_NS", -(10**15))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The files that are read whole meanwhile."""
    found: list[int] = []
    original = checkpoint_hash._content_hash

    def spy(fd: int, size: int, num_threads: int) -> str:
        found.append(size)
        return original(fd, size, num_threads)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_hash, "_content_hash", spy)
        yield found


def test_pieces_threads_and_place_do_not_matter_but_order_does(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_hash, "_PIECE_BYTES", 4096)
    whole = CheckpointHasher(tmp_path / "1", 1).hash_of([file])
    assert CheckpointHasher(tmp_path / "2", 5).hash_of([file]) == whole
    content = file.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / file.name
    moved.write_bytes(content)
    assert CheckpointHasher(tmp_path / "3", 1).hash_of([moved]) == whole
    moved.write_bytes(content[4096:] + b"\1" * 4096)
    assert CheckpointHasher(tmp_path / "4", 1).hash_of([moved]) != whole


def test_names_belong_to_the_hash(file: Path, hasher: CheckpointHasher, tmp_path: Path) -> None:
    """Shards of another name may hold other tensors; their order as given says nothing."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    both = hasher.hash_of([file, other])
    assert both == hasher.hash_of([other, file])
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    assert hasher.hash_of([file, other]) != both


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_read_once(
    file: Path, hasher: CheckpointHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reads(monkeypatch) as read:
        assert hasher.hash_of([file]) == hasher.hash_of([file])
        assert len(read) == 1


def test_a_fresh_file_is_read_each_time(
    file: Path, hasher: CheckpointHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write within the same tick, or through a memory map, would not show."""
    with reads(monkeypatch) as read:
        hasher.hash_of([file])
        hasher.hash_of([file])
        assert len(read) == 2


def written_in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def replaced(path: Path, content: bytes) -> None:
    other = path.with_name("new")
    other.write_bytes(content)
    other.replace(path)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [written_in_place, replaced])
def test_a_change_that_hides_its_time_is_seen(
    file: Path, hasher: CheckpointHasher, change: object
) -> None:
    """Same size, same times as before: only the status change or the inode tell."""
    assert callable(change)
    before, status = hasher.hash_of([file]), file.stat()
    change(file, b"\7" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert hasher.hash_of([file]) != before


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"identity": 3}', b"\xff\xfe"])
def test_a_damaged_memo_is_no_memo(
    file: Path, hasher: CheckpointHasher, tmp_path: Path, text: bytes
) -> None:
    expected = hasher.hash_of([file])
    (memo,) = (tmp_path / "hashes").iterdir()
    memo.write_bytes(text)
    assert hasher.hash_of([file]) == expected


@pytest.mark.usefixtures("settled")
def test_a_memo_that_others_may_write_is_not_believed(
    file: Path, hasher: CheckpointHasher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher.hash_of([file])
    (memo,) = (tmp_path / "hashes").iterdir()
    memo.chmod(0o666)
    with reads(monkeypatch) as read:
        hasher.hash_of([file])
        assert len(read) == 1


@pytest.mark.usefixtures("settled")
def test_without_a_place_for_the_memo_it_still_hashes(file: Path, tmp_path: Path) -> None:
    (tmp_path / "hashes").write_text("a file, not a folder")
    hasher = CheckpointHasher(tmp_path / "hashes", num_threads=1)
    assert hasher.hash_of([file]) == hasher.hash_of([file])
