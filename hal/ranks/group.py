"""Rank 0's end of a group: starts the other ranks, watches them, and says how one was lost."""

from __future__ import annotations

import os
import queue
import selectors
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace

from hal.collective import Collective
from hal.config import EngineConfig
from hal.device import Device
from hal.env import child_environment
from hal.errors import RANK_LOST, EngineError, HalError
from hal.exit_status import exit_words
from hal.ranks.connect import (
    START_TIMEOUT_S,
    STEP_TIMEOUT_S,
    Meeting,
    arrange,
    connect,
    self_test,
)
from hal.ranks.interrupts import interrupt_afterwards
from hal.ranks.messages import (
    Connected,
    Ended,
    FromRank,
    Load,
    Loaded,
    StartRank,
    decode_from_rank,
    send,
    send_bytes,
)
from hal.server.messages import receive_frame
from hal.share import Share

_SELF_TEST_TIMEOUT_S = 20.0
_SEND_TIMEOUT_S = 60.0
_STOP_GRACE_S = 2.0
# How long the death of a process may come after what it tears down.
_NEWS_S = 1.0


@dataclass(slots=True)
class _Rank:
    """Another rank's process and the two sockets to it.

    control: batches to it, read by its main thread; life: its messages, and its end
    """

    number: int
    process: subprocess.Popen[bytes]
    control: socket.socket
    life: socket.socket


class _Watch(threading.Thread):
    """Starts the processes, because the system ends them with the thread that did, and lives as
    long as they."""

    def __init__(self, size: int, descriptors: Sequence[int]) -> None:
        super().__init__(name="hal-ranks", daemon=True)
        self.inbox: queue.SimpleQueue[tuple[int, FromRank] | None] = queue.SimpleQueue()
        self.ranks: list[_Rank] = []
        self.failure: HalError | None = None
        self.collective: Collective | None = None
        self.listeners: list[Callable[[HalError], None]] = []
        self.has_started = threading.Event()
        self.has_ended = threading.Event()
        self.start_error: OSError | None = None
        self._size = size
        self._descriptors = descriptors
        self._is_closing = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        try:
            for number in range(1, self._size):
                rank = _start_rank(number, self._descriptors)
                self.ranks.append(rank)
                self._selector.register(rank.life, selectors.EVENT_READ, rank)
        except OSError as error:
            self.start_error = error
        self.has_started.set()
        while self.start_error is None and self.failure is None and not self._is_closing:
            for key, _ in self._selector.select():
                self._read(key.data)
        self._end()

    def close(self) -> None:
        """End all ranks; returns when they are gone."""
        self._is_closing = True
        for rank in self.ranks:
            _shut(rank.life)
        if self is not threading.current_thread():
            self.join()

    def news(self) -> HalError | None:
        """The failure, also one that is just becoming known."""
        self.has_ended.wait(_NEWS_S)
        return self.failure

    def _read(self, rank: _Rank) -> None:
        payload = None
        with suppress(OSError):
            payload = receive_frame(rank.life)
        message = None if payload is None else decode_from_rank(payload)
        if isinstance(message, Ended):
            error = message.error.to_error()
            error.message = f"rank {rank.number}: {error.message}"
            self._fail(error)
        elif message is not None:
            self.inbox.put((rank.number, message))
        elif not self._is_closing:
            self._fail(_death(rank))

    def _fail(self, error: HalError) -> None:
        self.failure = self.failure or error
        if self.collective is not None:
            self.collective.abort()
        self.inbox.put(None)
        for listener in self.listeners:
            listener(_lost(self.failure))

    def _end(self) -> None:
        """What is left of a group is of no use."""
        for rank in self.ranks:
            _shut(rank.life)
            _shut(rank.control)
        deadline = time.monotonic() + (_STOP_GRACE_S if self.failure is None else 0.0)
        for rank in self.ranks:
            try:
                rank.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        for rank in self.ranks:
            rank.life.close()
            rank.control.close()
        self._selector.close()
        self.has_ended.set()


class RankGroup:
    """The other ranks of `config.tensor_parallel_size`; close() it, or let it go.

    Raises EngineError with HAL-E604 where one cannot be started or is lost, and what that one
    raised itself where it said so.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.size = config.tensor_parallel_size
        self.meeting: Meeting = arrange(config.collective, self.size)
        self._watch = _Watch(self.size, self.meeting.descriptors)
        self._close = weakref.finalize(self, _Watch.close, self._watch)
        self._collective: Collective | None = None
        self._has_met = False
        self._watch.start()
        self._watch.has_started.wait()
        if self._watch.start_error is not None:
            raise EngineError(
                f"rank {len(self._watch.ranks) + 1} cannot be started: {self._watch.start_error}",
                code=RANK_LOST,
            )
        for rank in self._watch.ranks:
            start = StartRank(
                config=replace(config, trace=None),
                rank=rank.number,
                size=self.size,
                collective=self.meeting.collective,
                meeting=self.meeting.point,
            )
            with self._typed():
                send(rank.control, start)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the other ranks, in their order."""
        return tuple(rank.process.pid for rank in self._watch.ranks)

    def connect(self, device: Device) -> Collective:
        """Meet the others and test the collective."""
        share = Share(0, self.size)
        collective = connect(self.meeting.collective, share, self.meeting.point)
        self._collective = self._watch.collective = collective
        self._expect(Connected)
        self._leave_meeting()
        collective.limit_waits(_SELF_TEST_TIMEOUT_S)
        with self._typed():
            self_test(collective, device)
        collective.limit_waits(STEP_TIMEOUT_S)
        return collective

    def load(self, num_blocks: int) -> None:
        """Let the others allocate and load, beside this rank."""
        for rank in self._watch.ranks:
            with self._typed():
                send(rank.control, Load(num_blocks))

    def loaded(self) -> tuple[Loaded, ...]:
        """Wait for all; what each has read, in the order of ranks."""
        found = self._expect(Loaded)
        return tuple(message for message in found if isinstance(message, Loaded))

    def send(self, frame: bytes) -> None:
        """A batch for all others."""
        for rank in self._watch.ranks:
            send_bytes(rank.control, frame)

    def check(self) -> None:
        """Raise EngineError where the group cannot go on."""
        assert self._collective is not None, "connect() first"
        try:
            self._collective.check()
        except EngineError as error:
            lost = _lost(self._watch.news() or error)
            self.close()  # a rank that is late may still be there
            raise lost from None
        if self._watch.failure is not None:
            raise _lost(self._watch.failure)

    def on_loss(self, listener: Callable[[HalError], None]) -> None:
        """Call it, from another thread, when a rank is lost: nobody may be stepping then."""
        self._watch.listeners.append(listener)
        if self._watch.failure is not None:
            listener(_lost(self._watch.failure))

    def abort(self) -> None:
        """This rank has left a step: the group ends."""
        if self._collective is not None:
            self._collective.abort()
        self.close()

    def whole(self) -> AbstractContextManager[None]:
        """Keeps Ctrl-C out of a step."""
        return interrupt_afterwards()

    def close(self) -> None:
        """End the others; a second call does nothing."""
        self._close()
        self._leave_meeting()

    def _leave_meeting(self) -> None:
        if not self._has_met:
            self._has_met = True
            self.meeting.close()

    def _expect(self, kind: type[FromRank]) -> list[FromRank]:
        """One message of this kind from every other rank; by rank."""
        found: dict[int, FromRank] = {}
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(found) < self.size - 1:
            try:
                item = self._watch.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                late = [n for n in range(1, self.size) if n not in found]
                raise EngineError(
                    f"rank {late[0]} (pid {self.pids[late[0] - 1]}) gave no sign of life for "
                    f"{START_TIMEOUT_S:g} s: it was stopped or starved. Start again",
                    code=RANK_LOST,
                ) from None
            if item is None:
                assert self._watch.failure is not None
                raise self._watch.failure
            number, message = item
            assert isinstance(message, kind), f"rank {number} sent {message}"
            found[number] = message
        return [found[number] for number in sorted(found)]

    def _typed(self) -> _Typed:
        return _Typed(self._watch)


class _Typed:
    """Within it, a broken socket or collective becomes how the rank was lost."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError | EngineError):
            raise self._watch.news() or error from None


def _start_rank(number: int, descriptors: Sequence[int]) -> _Rank:
    control, its_control = socket.socketpair()
    life, its_life = socket.socketpair()
    control.settimeout(_SEND_TIMEOUT_S)
    with its_control, its_life:
        its = {"--control": its_control.fileno(), "--life": its_life.fileno()}
        arguments = [text for name, value in its.items() for text in (name, str(value))]
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "hal.cli.rank_process"),
                *(*arguments, "--parent", str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[*its.values(), *descriptors],
            start_new_session=True,  # Ctrl-C reaches rank 0 only
            env=child_environment(),
        )
    return _Rank(number, process, control, life)


def _lost(error: HalError) -> EngineError:
    """Once the group has started, whatever ended a rank is the loss of it."""
    return EngineError(error.message if error.code == RANK_LOST else str(error), code=RANK_LOST)


def _death(rank: _Rank) -> EngineError:
    try:
        returncode = rank.process.wait(_NEWS_S)
        how = (
            f"was killed by {exit_words(returncode)}"
            if returncode < 0
            else (f"ended with {exit_words(returncode)}")
        )
    except subprocess.TimeoutExpired:
        how = "closed its connection"
    return EngineError(
        f"rank {rank.number} (pid {rank.process.pid}) {how}. Its own messages stand above; if the "
        "system ran out of memory, lower --memory or --max-num-seqs. Start again",
        code=RANK_LOST,
    )


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
