"""`hal-info [SUBCOMMAND]`: finds the subcommand, reports its errors; without one, the report.

A subcommand is a module with `run(argv, environ) -> exit code` that raises HalError. It is
imported when it is named, so that `--help` stays quick.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from types import FrameType
from typing import cast

from hal.cli.arguments import report_error
from hal.env import environment, let_waiting_threads_sleep, wants_traceback
from hal.errors import HalError, ModelError
from hal.exit_status import exit_words

PROG = "hal-info"
EXIT_BAD_ARGUMENT = 2
EXIT_INTERRUPTED = 130
EXIT_SIGNAL = 128  # and the signal's number, as a shell tells of it
_ENDING = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n))
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

SUBCOMMANDS = {
    "doctor": "self-tests of every device: copy, matmul, a smoke run of each kernel",
    "plan": "whether a model fits a device, present or not, and what would make it fit",
    "explain": "which kernel runs each op of a model on a device, and why",
    "conform": "every kernel, layer and model check on a device, as a report",
    "cache": "the packed weights kept on disk: list them, or delete some",
    "verify": "run-time kernels compiled for devices that need not be here, their code checked",
    "prove": "the same prompts on several devices: do they agree, and where not",
}
"""Name -> one line of help. Each is a module of this package, `hal.cli.info.<name>`."""

Run = Callable[[Sequence[str], Mapping[str, str]], int]


class _Terminated(BaseException):
    """The system asks to end: what is open is closed on the way out."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, 130 after Ctrl-C, 143 after SIGTERM.

    A model that cannot be read is a wrong argument here: 2, as for any other.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in SUBCOMMANDS else ""
    prog = f"{PROG} {name}".strip()
    let_waiting_threads_sleep()
    _show_what_the_terminal_can()
    try:
        with _signals_as_exceptions():
            exit_code = _runner(name)(arguments, environment())
        sys.stdout.flush()  # what cannot be written fails here, where it has a message
        return exit_code
    except HalError as error:
        if wants_traceback():
            raise
        exit_code = report_error(prog, error)
        return EXIT_BAD_ARGUMENT if isinstance(error, ModelError) else exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _Terminated as terminated:
        print(f"{prog}: ended by {exit_words(-terminated.signal)}", file=sys.stderr)
        return EXIT_SIGNAL + terminated.signal
    except BrokenPipeError:
        # The reader of our output left, as `head` does.
        sys.stderr.close()
        return 0
    except OSError as error:
        if wants_traceback() or error.errno not in _CANNOT_WRITE:
            raise
        _drop_what_was_not_written()
        print(f"{prog}: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_BAD_ARGUMENT


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP would end the process at once, and leave its children and folders.

    A second one, while these are put away, is as good as the first.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for name in _ENDING:
            signal.signal(name, signal.SIG_IGN)
        raise _Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # An ignored one, as under nohup, stays ignored.
    before = {n: signal.getsignal(n) for n in _ENDING if signal.getsignal(n) is signal.SIG_DFL}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_what_the_terminal_can() -> None:
    """A bar or a path that the terminal's encoding lacks becomes a "?", never an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_what_was_not_written() -> None:
    """Python writes what is left when it ends, and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _runner(name: str) -> Run:
    module = import_module(f"hal.cli.info.{name or 'report_command'}")
    return cast("Run", module.run)
