"""The parent's end of an arm: starts its process, asks, and keeps its reasons."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peers import environments
from peers.cases import Case, Work
from peers.machine import busy_seconds
from peers.protocol import Document, Facts, Settings

BENCHMARKS = Path(__file__).resolve().parent.parent
GRACE_S = 10.0


class ArmFailure(Exception):
    """Why an arm has no number; stands in its row."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run. other_cpu: cores kept busy by anything but the arm, on average."""

    first_s: float
    total_s: float
    decode_tokens: int
    first_tokens: list[list[int]]
    other_cpu: float


class Child:
    """One arm's process, pinned to as many cores as it has threads."""

    def __init__(self, arm: str, settings: Settings, timeout_s: float) -> None:
        try:
            python = environments.python_of(settings.cache, arm)
        except environments.EnvironmentFailure as error:
            raise ArmFailure(str(error)) from error
        self.name = arm
        self.timeout_s = timeout_s
        logs = settings.cache / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"{arm}-{settings.weights}-{settings.folder.name}.log"
        read_end, write_end = os.pipe()
        module = environments.RECIPES[arm].module
        command = [str(python), "-m", module, str(write_end), str(settings.threads)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=(write_end,),
                env=_environ(arm, settings.threads),
            )
        os.close(write_end)
        self._replies = os.fdopen(read_end)

    def load(self, settings: Settings) -> Facts:
        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
        return Facts(**self._ask("load", settings=values))

    def prepare(self, case: Case) -> None:
        self._ask("prepare", case=asdict(case))

    def run(self, work: Sequence[Work]) -> Run:
        busy, start = busy_seconds(), time.perf_counter()
        reply = self._ask("run", work=[asdict(w) for w in work])
        elapsed = time.perf_counter() - start
        others = max(0.0, busy_seconds() - busy - reply["cpu_s"]) / elapsed
        return Run(
            reply["first_s"],
            reply["total_s"],
            reply["decode_tokens"],
            reply["tokens"],
            round(others, 2),
        )

    def log_likelihood(self, documents: Sequence[Document]) -> float:
        reply = self._ask("score", documents=[asdict(d) for d in documents])
        return float(reply["log_likelihood"])

    def _ask(self, command: str, **values: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **values}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ArmFailure(self._last_words(command)) from None
        if not select.select([self._replies], [], [], self.timeout_s)[0]:
            self._process.kill()  # it would take cores from the others
            raise ArmFailure(f"{command}: no answer in {self.timeout_s:g} s; see {self._log}")
        line = self._replies.readline()
        if not line:
            raise ArmFailure(self._last_words(command))
        reply: dict[str, Any] = json.loads(line)
        if "unsupported" in reply:
            raise ArmFailure(reply["unsupported"])
        return reply

    def _last_words(self, command: str) -> str:
        status = self._process.wait(GRACE_S)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else f"exit status {status}"
        return f"{command}: {last}; see {self._log}"

    def close(self) -> None:
        """End the process: by the end of its input, else by a signal."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended by itself
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _environ(arm: str, threads: int) -> dict[str, str]:
    """Ours keeps its import path; the others must not see this checkout's packages."""
    inherited = os.environ.get("PYTHONPATH", "") if arm == environments.OURS else ""
    path = os.pathsep.join(part for part in (str(BENCHMARKS), inherited) if part)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"}
    return {**os.environ, **offline, **settings}
