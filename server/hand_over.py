"""Zero-downtime restart on one host: a new server takes the listening socket of the old one.

Both talk over an abstract Unix socket that is named after the address and lets in processes of the
same user only (Linux). The new server first loads; then it asks for what the old one's prompts have
in common, and reads that into its own cache; then it takes the socket. Connections that arrive
meanwhile wait in the socket's queue; those that are open stay with the old server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from hal.errors import ConfigError
from hal.server.hot_prefixes import HotPrefix

_TIMEOUT_S = 30.0
_MAX_FRAME_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("iII")  # pid, user, group: struct ucred


class GivePrefixes(msgspec.Struct, tag=True, frozen=True):
    """The new server asks what to read into its cache; `tokenizer` is its fingerprint."""

    tokenizer: bytes


class GiveListener(msgspec.Struct, tag=True, frozen=True):
    """The new server is ready; answered by one byte with the socket beside it."""


class Taken(msgspec.Struct, tag=True, frozen=True):
    """The new server has the socket: the old one stops accepting, and answers when it has."""


Wish = GivePrefixes | GiveListener | Taken

_wishes = msgspec.msgpack.Decoder(Wish)
_prefixes = msgspec.msgpack.Decoder(list[HotPrefix])


def is_supported() -> bool:
    return sys.platform == "linux"


class Offer:
    """The old server's side: waits for a new one, and gives it everything once."""

    def __init__(self, host: str, listener: socket.socket) -> None:
        self.is_taken = asyncio.Event()
        self._listener = listener
        self._name = _name(host, listener.getsockname()[1])

    async def wait(
        self, prefixes: Callable[[bytes], list[HotPrefix]], leave: Callable[[], Awaitable[None]]
    ) -> None:
        """Until it is taken, or for ever.

        prefixes: what prompts have in common, for a server with that tokenizer
        leave: stop accepting connections and counting the use of keys; is_taken is set behind it
        """
        if not is_supported():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.setblocking(False)
            try:
                door.bind(self._name)
            except OSError:
                return  # a server that is leaving has it, or another network's of the same name
            door.listen(1)
            while not self.is_taken.is_set():
                visitor, _ = await asyncio.get_running_loop().sock_accept(door)
                with visitor, contextlib.suppress(OSError, TimeoutError, msgspec.MsgspecError):
                    await self._serve(visitor, prefixes, leave)

    async def _serve(
        self,
        visitor: socket.socket,
        prefixes: Callable[[bytes], list[HotPrefix]],
        leave: Callable[[], Awaitable[None]],
    ) -> None:
        if _peer(visitor).user != os.geteuid():
            return
        visitor.setblocking(False)
        while not self.is_taken.is_set():
            match _wishes.decode(await _receive(visitor, timeout_s=None)):
                case GivePrefixes(tokenizer):
                    found = await asyncio.to_thread(prefixes, tokenizer)
                    await _send(visitor, msgspec.msgpack.encode(found))
                case GiveListener():
                    socket.send_fds(visitor, [b"+"], [self._listener.fileno()])
                case Taken():
                    await leave()
                    self.is_taken.set()
                    await _send(visitor, b"")


class TakeOver:
    """The new server's side. Raises ConfigError where no server of this user is at that address."""

    def __init__(self, host: str, port: int) -> None:
        if not is_supported():
            raise ConfigError(f"--take-over needs Linux; this is {sys.platform}")
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connection.connect(_name(host, port))
            peer = _peer(self._connection)
        except OSError as error:
            self._connection.close()
            raise ConfigError(
                f"--take-over: no hal-serve listens on {host}:{port} here, started with the same "
                "--host and --port; leave --take-over out"
            ) from error
        if peer.user != os.geteuid():
            self._connection.close()
            raise ConfigError(
                f"--take-over: the server on {host}:{port} runs as user {peer.user}, this as "
                f"{os.geteuid()}; they must be the same"
            )
        self.pid = peer.pid
        self._connection.setblocking(False)

    async def prefixes(self, tokenizer: bytes) -> list[HotPrefix]:
        await self._ask(GivePrefixes(tokenizer))
        return _prefixes.decode(await self._answer())

    async def listener(self) -> socket.socket:
        """From now on connections are this process's; the old one has stopped accepting."""
        await self._ask(GiveListener())
        with _lost():
            await asyncio.wait_for(_readable(self._connection), _TIMEOUT_S)
            _, (descriptor,), _, _ = socket.recv_fds(self._connection, 1, 1)
        listener = socket.socket(fileno=descriptor)
        await self._ask(Taken())
        # An old server that ends right here has stopped accepting just as well.
        with contextlib.suppress(ConfigError):
            await self._answer()
        return listener

    def close(self) -> None:
        self._connection.close()

    async def _ask(self, wish: Wish) -> None:
        with _lost():
            await _send(self._connection, msgspec.msgpack.encode(wish))

    async def _answer(self) -> bytes:
        with _lost():
            return await _receive(self._connection, timeout_s=_TIMEOUT_S)


class _Peer(msgspec.Struct, frozen=True):
    pid: int
    user: int


def _peer(connection: socket.socket) -> _Peer:
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(found)
    return _Peer(pid, user)


def _name(host: str, port: int) -> str:
    """In the abstract namespace: no file is left behind by a server that is killed."""
    return f"\0hal-serve/{os.geteuid()}/{host}/{port}"


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(
            "--take-over: the old server has gone or does not answer; start without --take-over"
        ) from error


async def _send(connection: socket.socket, payload: bytes) -> None:
    frame = _LENGTH.pack(len(payload)) + payload
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(connection, frame), _TIMEOUT_S)


async def _receive(connection: socket.socket, timeout_s: float | None) -> bytes:
    """One frame's payload. Raises ConnectionError where the other side has closed."""
    async with asyncio.timeout(timeout_s):
        (length,) = _LENGTH.unpack(await _receive_exactly(connection, _LENGTH.size))
        if length > _MAX_FRAME_BYTES:
            raise ConnectionError(f"a frame of {length} bytes")
        return await _receive_exactly(connection, length)


async def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    loop = asyncio.get_running_loop()
    chunks = bytearray()
    while len(chunks) < num_bytes:
        chunk = await loop.sock_recv(connection, min(num_bytes - len(chunks), 2**20))
        if not chunk:
            raise ConnectionError("closed")
        chunks += chunk
    return bytes(chunks)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(connection, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(connection)
