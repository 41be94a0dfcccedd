"""What an arm is, and the JSON lines that it speaks. Runs inside each arm's environment.

One request a line on stdin, one reply a line on the descriptor named on the command line; what a
library prints goes to stderr. Standard library only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from peers.cases import Case, Kind, Length, Work

FIRST_TOKENS = 4


class NotSupportedError(Exception):
    """This arm cannot do what was asked; its message is the reason in the table."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an arm loads a model. max_len and max_num_seqs cover every case that will be asked.

    kv: our arm's cache, as --kv-cache-dtype takes it; the others keep their default.
    """

    folder: Path
    weights: str
    threads: int
    max_len: int
    max_num_seqs: int
    cache: Path
    kv: str = "auto"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an arm holds and reads, as found in what it loaded and not as configured.

    weight_bytes: read for one decode step; the embedding counts only where it is also the logits
    """

    engine: str
    weight_bytes: int
    logits_bits: float
    kv_bits: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Generated:
    """One run. decode_tokens: made after every request had its first token, at first_s."""

    first_s: float
    total_s: float
    decode_tokens: int
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids; those from `start` on are scored."""

    ids: tuple[int, ...]
    start: int


class Arm(Protocol):
    """One loaded engine."""

    def facts(self) -> Facts: ...

    def prepare(self, case: Case) -> None:
        """Whatever this case needs that is not to be timed."""

    def run(self, work: Sequence[Work]) -> Generated: ...

    def log_likelihood(self, document: Document) -> float:
        """Sum of the natural log probabilities of the scored tokens."""


class Stopwatch:
    """Times one run step by step."""

    def __init__(self, num_requests: int) -> None:
        self._waiting = set(range(num_requests))
        self._decode_tokens = 0
        self._first_s: float | None = None
        self._start = time.perf_counter()

    def saw(self, request: int, num_tokens: int = 1) -> None:
        """This step gave the request so many new tokens."""
        if self._first_s is None:
            self._waiting.discard(request)
        else:
            self._decode_tokens += num_tokens

    def end_step(self) -> None:
        if self._first_s is None and not self._waiting:
            self._first_s = time.perf_counter() - self._start

    def stop(self, tokens: list[list[int]]) -> Generated:
        total = time.perf_counter() - self._start
        if self._first_s is None:
            raise RuntimeError(f"requests {sorted(self._waiting)} ended without a token")
        return Generated(self._first_s, total, self._decode_tokens, tokens)


def check_lengths(work: Sequence[Work], generated: Generated) -> None:
    """An arm that stops early or goes on would be timed for another amount of work."""
    made = [len(tokens) for tokens in generated.tokens]
    asked = [w.num_output for w in work]
    if made != asked:
        raise RuntimeError(f"asked for {asked} tokens, got {made}")


def cpu_seconds() -> float:
    """User and system time of this process and its ended children, all threads."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


Load = Callable[[Settings], Arm]
Message = Mapping[str, object]


@dataclass(slots=True)
class Server:
    """Answers the parent's requests with one arm."""

    load: Load
    arm: Arm | None = None
    _handlers: dict[str, Callable[[dict[str, object]], Message]] = field(init=False)

    def __post_init__(self) -> None:
        self._handlers = {
            "load": self._load,
            "prepare": self._prepare,
            "run": self._run,
            "score": self._score,
        }

    def answer(self, line: str) -> str:
        request: dict[str, object] = json.loads(line)
        try:
            reply = self._handlers[str(request["command"])](request)
        except NotSupportedError as error:
            reply = {"unsupported": str(error)}
        return json.dumps(reply)

    def _load(self, request: dict[str, object]) -> Message:
        settings = settings_of(request)
        self.arm = self.load(settings)
        return asdict(self.arm.facts())

    def _prepare(self, request: dict[str, object]) -> Message:
        self._loaded.prepare(case_of(request))
        return {}

    def _run(self, request: dict[str, object]) -> Message:
        work = work_of(request)
        before = cpu_seconds()
        generated = self._loaded.run(work)
        used = cpu_seconds() - before
        check_lengths(work, generated)
        first = [tokens[:FIRST_TOKENS] for tokens in generated.tokens]
        return {**asdict(generated), "tokens": first, "cpu_s": used}

    def _score(self, request: dict[str, object]) -> Message:
        documents = request["documents"]
        assert isinstance(documents, list)
        total = sum(
            self._loaded.log_likelihood(Document(tuple(d["ids"]), d["start"])) for d in documents
        )
        return {"log_likelihood": total}

    @property
    def _loaded(self) -> Arm:
        assert self.arm is not None, "load comes first"
        return self.arm


def settings_of(request: dict[str, object]) -> Settings:
    values = request["settings"]
    assert isinstance(values, dict)
    paths = {name: Path(values[name]) for name in ("folder", "cache")}
    return Settings(**{**values, **paths})


def case_of(request: dict[str, object]) -> Case:
    values = request["case"]
    assert isinstance(values, dict)
    lengths = tuple(Length(**length) for length in values["lengths"])
    return Case(values["name"], Kind(values["kind"]), lengths)


def work_of(request: dict[str, object]) -> list[Work]:
    values = request["work"]
    assert isinstance(values, list)
    return [Work(tuple(w["prompt"]), w["num_output"]) for w in values]


def serve(load: Load) -> None:
    """Main function of an arm: `python -m peers.arms.NAME REPLY_DESCRIPTOR THREADS`."""
    replies = os.fdopen(int(sys.argv[1]), "w")
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[: int(sys.argv[2])])
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = Server(load)
    for line in sys.stdin:
        replies.write(server.answer(line) + "\n")
        replies.flush()
