"""A rank other than 0: builds its part of the model and runs every batch that rank 0 sends."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn

from hal.assembly import Assembled, assemble, make_selector, selection_policy
from hal.build import place_threads, resolve_for
from hal.collective import Collective
from hal.devices import open_device
from hal.engine.batch_codec import BatchDecoder
from hal.engine.loader import load_weights
from hal.engine.progress import SilentProgress
from hal.engine.weights import CheckpointReader
from hal.errors import EngineError, HalError
from hal.parent_process import die_with_parent
from hal.ranks.connect import STEP_TIMEOUT_S, connect, self_test
from hal.ranks.messages import Connected, Ended, Load, Loaded, StartRank, decode_to_rank, send
from hal.server.messages import ErrorRecord, receive_frame
from hal.share import Share


def run_rank(control_fd: int, life_fd: int, parent_pid: int) -> int:
    """Serve until rank 0 is gone; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent_pid)  # elsewhere the closed socket ends it
    control, life = socket.socket(fileno=control_fd), socket.socket(fileno=life_fd)
    threading.Thread(target=_end_with, args=(life,), name="life", daemon=True).start()
    try:
        _serve(control, life)
    except HalError as error:
        _tell(life, error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 a bug: its place is worth a traceback
        traceback.print_exc()
        failure = EngineError(f"{type(error).__name__}: {error}")
        _tell(life, failure)
        return failure.exit_code
    return 0


def _serve(control: socket.socket, life: socket.socket) -> None:
    start = decode_to_rank(_expect(control))
    assert isinstance(start, StartRank), start
    device = open_device(start.config.device).device
    share = Share(start.rank, start.size)
    collective = connect(start.collective, share, start.meeting)
    send(life, Connected())
    self_test(collective, device)
    collective.limit_waits(STEP_TIMEOUT_S)
    rank = _Rank(start, collective)
    load = decode_to_rank(_expect(control))
    assert isinstance(load, Load), load
    send(life, rank.load(load.num_blocks))
    decoder, runner = BatchDecoder(), rank.assembled.runner
    while True:
        runner.submit(decoder.decode(_expect(control)))
        collective.check()


class _Rank:
    """The same assembly as rank 0's, of this rank's sizes."""

    def __init__(self, start: StartRank, collective: Collective) -> None:
        self._config = start.config
        found = resolve_for(start.config)
        self._folder, self._device = found.folder, found.device
        place_threads(start.config, found.device, start.rank)
        policy = selection_policy(start.config)
        selector = make_selector(found.device.capabilities, policy)
        self.assembled: Assembled = assemble(
            found.model, found.resolved, selector, collective, found.device
        )

    def load(self, num_blocks: int) -> Loaded:
        """Allocate everything and read this rank's part of the checkpoint."""
        parameters = self.assembled.decoder.parameters
        parameters.allocate(self._device)
        self.assembled.binder.arena.allocate(self._device)
        self.assembled.runner.start(num_blocks)
        with CheckpointReader(self._folder) as reader:
            load_weights(parameters, reader, SilentProgress())
            read_bytes = reader.num_bytes_read
        self.assembled.runner.warm_up()
        return Loaded(read_bytes=read_bytes, weights_bytes=parameters.num_bytes)


def _expect(control: socket.socket) -> bytes:
    """The next frame; ends the process where rank 0 has closed the connection."""
    payload = receive_frame(control)
    if payload is None:
        _exit_without_rank_0()
    return payload


def _end_with(life: socket.socket) -> None:
    """Rank 0 never writes here: what can be read is its end."""
    with suppress(OSError):
        life.recv(1)
    _exit_without_rank_0()


def _exit_without_rank_0() -> NoReturn:
    sys.stderr.flush()
    os._exit(0)


def _tell(life: socket.socket, error: HalError) -> None:
    with suppress(OSError):
        send(life, Ended(ErrorRecord.of(error)))
