"""The file in which the use of keys outlives the server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from hal.errors import ConfigError
from hal.server.quotas import KeyUse, Quota

_SAVE_INTERVAL_S = 2.0

_log = logging.getLogger("hal.server")
_decoder = msgspec.json.Decoder(dict[str, KeyUse])


class UsageFile:
    """One server's file, locked for as long as it is open.

    Raises ConfigError where it cannot be written, belongs to another server or is not such a file:
    limits that a restart forgets would not be limits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_failing = False
        try:
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise _refusal(path, f"{error.strerror}; name a file in a writable folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise _refusal(path, "another server counts in it; give each its own") from error

    def load(self, quotas: Mapping[str, Quota]) -> None:
        """Let each key go on from what was counted; keys that the file lacks begin anew."""
        try:
            found = _decoder.decode(self._path.read_bytes())
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refusal(self._path, str(error.strerror)) from error
        except msgspec.MsgspecError as error:
            raise _refusal(
                self._path, f"not the use of keys ({error}); remove it to count anew"
            ) from error
        for name in quotas.keys() & found.keys():
            quotas[name].resume(found[name])

    @contextlib.asynccontextmanager
    async def kept(self, quotas: Mapping[str, Quota]) -> AsyncIterator[None]:
        """Load now, save from time to time and at the end, which closes the file."""
        self.load(quotas)
        is_ending = asyncio.Event()
        saving = asyncio.create_task(self._keep_saving(quotas, is_ending))
        try:
            yield
        finally:
            is_ending.set()
            await saving
            self._try_to_save(_use_of(quotas))
            self.close()

    async def _keep_saving(self, quotas: Mapping[str, Quota], is_ending: asyncio.Event) -> None:
        while not is_ending.is_set():
            await asyncio.to_thread(self._try_to_save, _use_of(quotas))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_ending.wait(), _SAVE_INTERVAL_S)

    def _try_to_save(self, use: dict[str, KeyUse]) -> None:
        """A full disk is told once; it is tried again all the same."""
        try:
            self._write(use)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                _log.error("the use of keys could not be saved to %s: %s", self._path, error)
            self._is_failing = True

    def close(self) -> None:
        os.close(self._lock)

    def _write(self, use: dict[str, KeyUse]) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(use))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


def _use_of(quotas: Mapping[str, Quota]) -> dict[str, KeyUse]:
    return {name: quota.use() for name, quota in quotas.items()}


def _refusal(path: Path, why: str) -> ConfigError:
    return ConfigError(f"--key-usage {path}: {why}")
