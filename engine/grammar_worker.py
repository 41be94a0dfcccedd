"""Compiles grammars in a process of its own: too slow or too large kills that process only.

The worker answers each line of JSON on its stdin with one on its stdout. It ends itself by an alarm
when a grammar takes too long, by its memory limit when one needs too much, and when its parent has
closed the pipe.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hal.errors import EngineError, GrammarError, HalError
from hal.guided_decoding import GuidedDecodingParams

COMPILE_TIMEOUT_S = 2.0
COMPILE_BYTES = 512 * 2**20
"""More than the worker holds when it has the tokenizer."""

_START_TIMEOUT_S = 60.0


class GrammarWorker:
    """The parent's side. One grammar at a time."""

    def __init__(
        self,
        folder: Path,
        timeout_s: float = COMPILE_TIMEOUT_S,
        max_bytes: int = COMPILE_BYTES,
    ) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._command = [
            *(sys.executable, "-P", "-m", "hal.engine.grammar_worker"),
            *(str(folder), str(timeout_s), str(max_bytes)),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._end: Callable[[], object] = _nothing

    @property
    def pid(self) -> int | None:
        """None until the first grammar, and after one that killed it."""
        return None if self._process is None else self._process.pid

    def compile(self, params: GuidedDecodingParams) -> int:
        """About how many bytes the compiled grammar occupies. Raises GrammarError."""
        process = self._started()
        # The worker's own alarm is exact; this one is for a worker that was stopped.
        answer = _ask(process, json.dumps(asdict(params)), self._timeout_s + _START_TIMEOUT_S)
        if not answer:
            raise self._killed(process)
        found = json.loads(answer)
        if "error" in found:
            raise GrammarError(found["error"], param="guided_decoding")
        return int(found["num_bytes"])

    def close(self) -> None:
        """End the process; dropping the last reference to this object does the same."""
        self._process = None
        self._end()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # something else has ended it; this grammar is not to blame
        if self._process is None:
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                _end(process)
                raise EngineError("the process that compiles grammars did not start; see the log")
            self._process = process
            self._end = weakref.finalize(self, _end, process)
        return self._process

    def _killed(self, process: subprocess.Popen[str]) -> GrammarError:
        self.close()
        if process.returncode == -signal.SIGALRM:
            reason = f"takes longer than {self._timeout_s:g} s to compile"
        elif process.returncode == -signal.SIGABRT:  # what a failed allocation ends in
            reason = f"needs more than {self._max_bytes / 2**20:.0f} MiB to compile"
        else:
            reason = f"ended the process that compiles it (exit code {process.returncode})"
        return GrammarError(f"the grammar {reason}; ask for a simpler one", param="guided_decoding")


def _ask(process: subprocess.Popen[str], line: str, timeout_s: float) -> str:
    """The answer; "" when the worker died, which it does at the latest after `timeout_s`."""
    assert process.stdin is not None and process.stdout is not None
    killing = threading.Timer(timeout_s, process.kill)
    killing.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""
    finally:
        killing.cancel()


def _nothing() -> None:
    """Before the first start."""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with suppress(BrokenPipeError):
            stream.close()


def run_worker(folder: Path, timeout_s: float, max_bytes: int) -> None:
    """The worker's side, until stdin ends."""
    from hal.engine.grammar import compile_grammar, load_grammar_tokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals the whole group
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    tokenizer = load_grammar_tokenizer(folder)
    # What the first grammar sets up once is no part of its size.
    compile_grammar(tokenizer, GuidedDecodingParams(json_object=True)).compute_bitmask()
    _limit_memory(max_bytes)
    print("ready", flush=True)
    for line in sys.stdin:
        params = GuidedDecodingParams(**json.loads(line))
        compiled = None  # the last one must not be freed while this one is measured
        before = _allocated_bytes()
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            compiled = compile_grammar(tokenizer, params)
            compiled.compute_bitmask()  # the first mask builds much of the lexer
            answer: dict[str, object] = {"num_bytes": max(_allocated_bytes() - before, len(line))}
        except HalError as error:
            answer = {"error": error.message}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


def _limit_memory(more_bytes: int) -> None:
    """Of address space: what is mapped now and so much more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux: the alarm is the only limit
        return
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2 (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _allocated_bytes() -> int:
    """In use on the heap; 0 where the C library cannot tell."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return int(info.uordblks) + int(info.hblkhd)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
