"""Starts the engine process, watches it, and says why it failed.

Ready means: alive, and idle or progressing. A dead process shows as a closed socket; a stopped
one as missing heartbeats; a hung step as heartbeats whose step counter stands still.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hal.env import child_environment
from hal.errors import ENGINE_DIED, ENGINE_HUNG, ENGINE_SILENT, EngineError, HalError
from hal.exit_status import exit_words
from hal.server.messages import (
    HEADER,
    MAX_FRAME_BYTES,
    EngineInfo,
    Failed,
    FromEngine,
    Heartbeat,
    Outputs,
    Ready,
    Start,
    ToEngine,
    decode_from_engine,
    encode_frame,
)

_CHECK_INTERVAL_S = 0.5
_STOP_GRACE_S = 2.0


class EngineState(StrEnum):
    """Where the engine process is in its life; FAILED and STOPPED are final."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogLimits:
    """A long prefill on a slow device is one step: heartbeats are quick, steps may be slow."""

    heartbeat_timeout_s: float = 10.0
    step_timeout_s: float = 300.0


class EngineProcess:
    """The front's end of one engine process; spawn() in the main thread, then run()."""

    def __init__(
        self,
        command: Sequence[str],
        limits: WatchdogLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = EngineState.STARTING
        self.info: EngineInfo | None = None
        self.failure: HalError | None = None
        self._command = command
        self._limits = limits or WatchdogLimits()
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._heartbeat_at = self._progress_at = clock()
        self._num_steps = 0

    def spawn(self) -> None:
        """Start the process; it dies with the calling thread, so call this in the main one."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            self._process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches the front only, even before it is ignored
                env=child_environment(),
            )
        self._connection = ours

    @property
    def pid(self) -> int:
        assert self._process is not None, "spawn() first"
        return self._process.pid

    @property
    def heartbeat_age_s(self) -> float:
        return self._clock() - self._heartbeat_at

    def send(self, message: ToEngine) -> None:
        """Queue a message; lost without an error when the process is gone (run() reports that)."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def run(self, start: Start, on_message: Callable[[FromEngine], None]) -> HalError:
        """Deliver messages until the engine fails; returns the failure, the process is gone then.

        Cancel it and call stop() to end a healthy engine.
        """
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        self.send(start)
        watchdog = asyncio.create_task(self._watch())
        reading = asyncio.create_task(self._read(reader, on_message))
        try:
            done, _ = await asyncio.wait({watchdog, reading}, return_when=asyncio.FIRST_COMPLETED)
            self.failure = done.pop().result()
            self.state = EngineState.FAILED
        finally:
            watchdog.cancel()
            reading.cancel()
        await self._end()
        return self.failure

    async def stop(self) -> None:
        """End the process: a closed socket first, SIGKILL if that is not enough."""
        if self.state is not EngineState.FAILED:
            self.state = EngineState.STOPPED
        await self._end()

    def kill(self) -> None:
        """End the process at once, without an event loop."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    async def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if await self._exit_code() is None:
            self.kill()

    async def _exit_code(self) -> int | None:
        assert self._process is not None, "spawn() first"
        deadline = self._clock() + _STOP_GRACE_S
        while self._process.poll() is None and self._clock() < deadline:
            await asyncio.sleep(0.01)
        return self._process.poll()

    async def _read(
        self, reader: asyncio.StreamReader, on_message: Callable[[FromEngine], None]
    ) -> HalError:
        while True:
            try:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                assert length <= MAX_FRAME_BYTES, f"frame of {length} bytes"
                message = decode_from_engine(await reader.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                return await self._death()
            if isinstance(message, Failed):
                return message.error.to_error()
            self._note(message)
            on_message(message)

    def _note(self, message: FromEngine) -> None:
        now = self._clock()
        self._heartbeat_at = now
        if isinstance(message, Ready):
            self.info = message.info
            self.state = EngineState.READY
            self._progress_at = now
        elif isinstance(message, Outputs):
            self._progress_at = now
        elif isinstance(message, Heartbeat):
            if not message.is_busy or message.num_steps != self._num_steps:
                self._progress_at = now
            self._num_steps = message.num_steps

    async def _watch(self) -> HalError:
        """Return the failure of a stopped or hung engine; a load is never timed."""
        checked_at = self._clock()
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            now = self._clock()
            if now - checked_at > 4 * _CHECK_INTERVAL_S:
                # This process itself was stopped: frames wait unread, their age means nothing.
                self._heartbeat_at = self._progress_at = now
            checked_at = now
            failure = self._overdue(now) if self.state is EngineState.READY else None
            if failure is not None:
                self.kill()
                return failure

    def _overdue(self, now: float) -> EngineError | None:
        limits = self._limits
        if now - self._heartbeat_at > limits.heartbeat_timeout_s:
            return EngineError(
                f"the engine process (pid {self.pid}) sent no heartbeat for "
                f"{limits.heartbeat_timeout_s:g} s: it was stopped or starved. Start again.",
                code=ENGINE_SILENT,
            )
        if now - self._progress_at > limits.step_timeout_s:
            return EngineError(
                f"step {self._num_steps + 1} of the engine (pid {self.pid}) has run for more than "
                f"{limits.step_timeout_s:g} s. If the device is only slow, raise --step-timeout or "
                "lower --max-num-batched-tokens.",
                code=ENGINE_HUNG,
            )
        return None

    async def _death(self) -> EngineError:
        exit_code = await self._exit_code()
        if exit_code is None:
            how = "closed its connection"
        elif exit_code < 0:
            how = f"was killed by {exit_words(exit_code)}"
        else:
            how = f"exited with code {exit_code}"
        return EngineError(
            f"the engine process (pid {self.pid}) {how}. Its own messages stand above; if the "
            "system ran out of memory, lower --memory or --max-num-seqs.",
            code=ENGINE_DIED,
        )


def _has_descriptor(stream: object) -> bool:
    """Whether a child can write to it; a test may have replaced stderr by a buffer."""
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
