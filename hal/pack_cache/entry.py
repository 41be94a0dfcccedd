"""One entry: a header that says what follows, a checksum of each chunk, and the chunks.

    magic, sizes of what follows | key (JSON) | crc32 of each chunk | crc32 of all before | data

A chunk is up to 1 MiB of one part. crc32 runs at memory speed (4 GB/s a core measured), sees every
run of up to 32 damaged bits, and one in four billion of other damages of a chunk, such as blocks
of zeros after a power cut, passes it. Whether the entry is the right one does not rest on it: the
whole key is compared.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from hal.pack_cache.files import replace_file
from hal.pack_cache.ownership import is_trusted
from hal.pack_cache.parallel import in_threads, read_exactly, write_exactly

CHUNK_BYTES = 1 << 20
_MAGIC = b"HALPACK\x01"
_PREFIX = struct.Struct("<8sQQ")  # magic, bytes of the key, number of chunks
_CHECKSUM = struct.Struct("<I")
_ALIGNMENT = 4096
_MOST_HEADER_BYTES = 64 << 20  # of terabytes of weights


class UnusableEntry(Exception):
    """The entry is not what its name says; the text says what was found."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A piece of the weights' memory and where the file has it."""

    memory: memoryview
    offset: int


class OpenEntry:
    """An entry whose header is sound and whose key is the one asked for."""

    def __init__(self, path: Path, key: bytes, parts: Sequence[memoryview]) -> None:
        """Raises UnusableEntry, FileNotFoundError, or another OSError."""
        self._file = path.open("rb", buffering=0)
        try:
            self._chunks = list(_chunks(parts, _data_offset(key, parts)))
            self._checksums = _read_header(self._file, key, self._chunks)
        except BaseException:
            self._file.close()
            raise

    def read(self, num_threads: int, advance: Callable[[int], None]) -> None:
        """Fill the parts; raises UnusableEntry or OSError, and leaves them undefined then."""
        fd = self._file.fileno()

        def fill(index: int) -> int:
            chunk = self._chunks[index]
            is_whole = read_exactly(fd, chunk.memory, chunk.offset)
            if not is_whole or zlib.crc32(chunk.memory) != self._checksums[index]:
                raise UnusableEntry(f"chunk {index + 1} of {len(self._chunks)} is damaged")
            return chunk.memory.nbytes

        in_threads(fill, range(len(self._chunks)), num_threads, advance)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_key(path: Path) -> bytes:
    """What an entry was made from; raises UnusableEntry where its header is not sound, OSError."""
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        _check_owner(status)
        prefix = memoryview(bytearray(_PREFIX.size))
        is_whole = read_exactly(file.fileno(), prefix, 0)
        magic, key_bytes, num_chunks = _PREFIX.unpack(prefix)
        if not is_whole or magic != _MAGIC:
            raise UnusableEntry("it has another format")
        size = _PREFIX.size + key_bytes + (num_chunks + 1) * _CHECKSUM.size
        if size > min(status.st_size, _MOST_HEADER_BYTES):
            raise UnusableEntry("its header is damaged")
        header = memoryview(bytearray(size))
        is_whole = read_exactly(file.fileno(), header, 0)
    body, last = header[: -_CHECKSUM.size], header[-_CHECKSUM.size :]
    if not is_whole or zlib.crc32(body) != _CHECKSUM.unpack(last)[0]:
        raise UnusableEntry("its header is damaged")
    return bytes(body[_PREFIX.size : _PREFIX.size + key_bytes])


def write_entry(path: Path, key: bytes, parts: Sequence[memoryview], num_threads: int) -> None:
    """Write the parts under `path`, whole or not at all; raises OSError."""

    def write(fd: int) -> None:
        def put(chunk: _Chunk) -> int:
            write_exactly(fd, chunk.memory, chunk.offset)
            return zlib.crc32(chunk.memory)

        chunks = _chunks(parts, _data_offset(key, parts))
        checksums: list[int] = []
        in_threads(put, chunks, num_threads, checksums.append)
        write_exactly(fd, memoryview(_header(key, checksums)), 0)

    replace_file(path, write)


def entry_bytes(key: bytes, parts: Sequence[memoryview]) -> int:
    """The size of the file."""
    return _data_offset(key, parts) + sum(part.nbytes for part in parts)


def _chunks(parts: Sequence[memoryview], offset: int) -> Iterator[_Chunk]:
    for part in parts:
        for start in range(0, part.nbytes, CHUNK_BYTES):
            memory = part[start : start + CHUNK_BYTES]
            yield _Chunk(memory, offset)
            offset += memory.nbytes


def _data_offset(key: bytes, parts: Sequence[memoryview]) -> int:
    num_chunks = sum(-(-part.nbytes // CHUNK_BYTES) for part in parts)
    header = _PREFIX.size + len(key) + (num_chunks + 1) * _CHECKSUM.size
    return -(-header // _ALIGNMENT) * _ALIGNMENT


def _header(key: bytes, checksums: Sequence[int]) -> bytes:
    body = _PREFIX.pack(_MAGIC, len(key), len(checksums)) + key
    body += struct.pack(f"<{len(checksums)}I", *checksums)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def _read_header(file: FileIO, key: bytes, chunks: Sequence[_Chunk]) -> tuple[int, ...]:
    """The checksums of the chunks; raises UnusableEntry."""
    status = os.fstat(file.fileno())
    _check_owner(status)
    size = _PREFIX.size + len(key) + (len(chunks) + 1) * _CHECKSUM.size
    header = memoryview(bytearray(size))
    is_whole = read_exactly(file.fileno(), header, 0)
    if bytes(header[: len(_MAGIC)]) != _MAGIC:
        raise UnusableEntry("it has another format")
    if not is_whole or bytes(header[_PREFIX.size : _PREFIX.size + len(key)]) != key:
        raise UnusableEntry("it was made from something else")
    body, last = header[: -_CHECKSUM.size], header[-_CHECKSUM.size :]
    if zlib.crc32(body) != _CHECKSUM.unpack(last)[0]:
        raise UnusableEntry("its header is damaged")
    end = chunks[-1].offset + chunks[-1].memory.nbytes
    if status.st_size != end:
        raise UnusableEntry(f"it has {status.st_size} bytes, not {end}")
    return struct.unpack_from(f"<{len(chunks)}I", body, _PREFIX.size + len(key))


def _check_owner(status: os.stat_result) -> None:
    if not is_trusted(status):
        raise UnusableEntry("it belongs to another user, or others may write it")
