"""The only place that reads the environment: every flag is also HAL_<FLAG>.

`--max-model-len` is HAL_MAX_MODEL_LEN. A flag on the command line wins over the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

PREFIX = "HAL_"
TRACEBACK = "HAL_TRACEBACK"
"""Set to 1 to print the traceback of an expected error as well."""
CACHE_FOLDER = "HAL_CACHE_FOLDER"
"""Where packed weights are kept; $XDG_CACHE_HOME/hal/packed or ~/.cache/hal/packed without it."""
LOG_LEVELS = ("debug", "info", "warning", "error")
"""Of --log-level, and of the admin route that changes it."""

# Turns that an OpenMP thread of libgomp waits at a barrier before it sleeps.
_SPIN = ("GOMP_SPINCOUNT", "1000")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


def environment() -> Mapping[str, str]:
    """What to pass to the functions below outside tests."""
    return os.environ


def variable_of(flag: str) -> str:
    """The environment name of a flag: "max-model-len" -> "HAL_MAX_MODEL_LEN"."""
    return PREFIX + flag.replace("-", "_").upper()


def flag_value(flag: str, environ: Mapping[str, str]) -> str | None:
    return environ.get(variable_of(flag))


def parse_switch(text: str) -> bool:
    """ "1", "true", "yes", "on" or "0", "false", "no", "off", ""; raises ValueError otherwise."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(f"{text!r} is not 1, true, yes, on, 0, false, no or off")


def unknown_names(flags: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """HAL_ names that no flag has: most likely misspelt."""
    known = {variable_of(flag) for flag in flags} | {TRACEBACK, CACHE_FOLDER}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def wants_traceback() -> bool:
    return os.environ.get(TRACEBACK, "").strip().lower() in _TRUE


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """Where packed weights are kept; None where this user has no home to keep them in."""
    if chosen := environ.get(CACHE_FOLDER):
        return Path(chosen).expanduser().absolute()
    try:
        base = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return base / "hal" / "packed" if base.is_absolute() else None


def let_waiting_threads_sleep() -> None:
    """To be called before torch loads its OpenMP library, which reads this once.

    By default a thread that waits for others spins for milliseconds. Where anything else wants
    its core, that keeps the thread it waits for from running: decoding then falls to a tenth. On
    a quiet machine the brief spin measured no slower (0.5B shape, two threads).
    A user's own setting wins.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(*_SPIN)


def child_environment() -> dict[str, str]:
    """What a child process inherits: all of it, so that library settings reach it."""
    return {_SPIN[0]: _SPIN[1], **os.environ}
