"""`hal-info [SUBCOMMAND]`: finds the subcommand, reports its errors; without one, the report.

A subcommand is a module with `run(argv, environ) -> exit code` that raises HalError. It is
imported when it is named, so that `--help` stays quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import cast

from hal.cli.arguments import report_error
from hal.env import environment, let_waiting_threads_sleep, wants_traceback
from hal.errors import HalError, ModelError

PROG = "hal-info"
EXIT_BAD_ARGUMENT = 2
EXIT_INTERRUPTED = 130

SUBCOMMANDS = {
    "doctor": "self-tests of every device: copy, matmul, a smoke run of each kernel",
    "plan": "whether a model fits a device, present or not, and what would make it fit",
    "explain": "which kernel runs each op of a model on a device, and why",
    "conform": "every kernel, layer and model check on a device, as a report",
    "prove": "the same prompts on several devices: do they agree, and where not",
}
"""Name -> one line of help. Each is a module of this package, `hal.cli.info.<name>`."""

Run = Callable[[Sequence[str], Mapping[str, str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, 130 after Ctrl-C.

    A model that cannot be read is a wrong argument here: 2, as for any other.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in SUBCOMMANDS else ""
    prog = f"{PROG} {name}".strip()
    let_waiting_threads_sleep()
    try:
        return _runner(name)(arguments, environment())
    except HalError as error:
        if wants_traceback():
            raise
        exit_code = report_error(prog, error)
        return EXIT_BAD_ARGUMENT if isinstance(error, ModelError) else exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `head` does.
        sys.stderr.close()
        return 0


def _runner(name: str) -> Run:
    module = import_module(f"hal.cli.info.{name or 'report_command'}")
    return cast("Run", module.run)
