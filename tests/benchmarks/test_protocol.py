"""What an arm answers: exact lengths, tokens after the first of all, reasons for what it lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from peers.cases import CASES, Case, Work
from peers.protocol import (
    Document,
    Facts,
    Generated,
    NotSupportedError,
    Server,
    Settings,
    Stopwatch,
    case_of,
    check_lengths,
    settings_of,
    work_of,
)

SETTINGS = Settings(Path("/models/x"), "bf16", 2, 97, 8, Path("/cache"))


class Echo:
    """Repeats the last prompt token; a document's log likelihood is minus its scored length."""

    def __init__(self, settings: Settings, *, extra: int = 0) -> None:
        if settings.weights == "int4":
            raise NotSupportedError("no int4 here")
        self.prepared: list[str] = []
        self._extra = extra

    def facts(self) -> Facts:
        return Facts("echo 1", 100, 16, 16)

    def prepare(self, case: Case) -> None:
        self.prepared.append(case.name)

    def run(self, work: Sequence[Work]) -> Generated:
        tokens = [[w.prompt[-1]] * (w.num_output + self._extra) for w in work]
        return Generated(0.5, 2.0, 4, tokens)

    def log_likelihood(self, document: Document) -> float:
        return -float(len(document.ids) - document.start)


def ask(server: Server, command: str, **values: object) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(server.answer(json.dumps({"command": command, **values})))
    return reply


def loaded(server: Server, **changes: object) -> dict[str, Any]:
    values = {**asdict(SETTINGS), "folder": "/models/x", "cache": "/cache", **changes}
    return ask(server, "load", settings=values)


def test_decode_tokens_are_those_after_everyones_first() -> None:
    watch = Stopwatch(2)
    for seen in ([(0, 1)], [(0, 1), (1, 1)], [(0, 1), (1, 2)], [(1, 1)]):
        for request, count in seen:
            watch.saw(request, count)
        watch.end_step()
    generated = watch.stop([[1] * 3, [2] * 4])
    assert generated.decode_tokens == 4
    assert 0 < generated.first_s <= generated.total_s


def test_a_request_without_a_token_is_an_error() -> None:
    watch = Stopwatch(2)
    watch.saw(0)
    watch.end_step()
    with pytest.raises(RuntimeError, match=r"requests \[1\] ended without a token"):
        watch.stop([[1], []])


def test_wrong_lengths_are_an_error() -> None:
    work = [Work((1, 2), 3)]
    check_lengths(work, Generated(1, 2, 2, [[7, 7, 7]]))
    with pytest.raises(RuntimeError, match=r"asked for \[3\] tokens, got \[2\]"):
        check_lengths(work, Generated(1, 2, 2, [[7, 7]]))


def test_a_served_arm_loads_prepares_runs_and_scores() -> None:
    server = Server(Echo)
    assert loaded(server)["engine"] == "echo 1"
    assert ask(server, "prepare", case=asdict(CASES["decode-8"])) == {}
    assert isinstance(server.arm, Echo) and server.arm.prepared == ["decode-8"]
    reply = ask(server, "run", work=[{"prompt": [3, 9], "num_output": 5}])
    assert reply["tokens"] == [[9, 9, 9, 9]]
    assert (reply["first_s"], reply["total_s"], reply["decode_tokens"]) == (0.5, 2.0, 4)
    assert reply["cpu_s"] >= 0
    documents = [{"ids": [1, 2, 3], "start": 1}, {"ids": [1, 2], "start": 1}]
    assert ask(server, "score", documents=documents) == {"log_likelihood": -3.0}


def test_what_an_arm_lacks_is_an_answer() -> None:
    assert loaded(Server(Echo), weights="int4") == {"unsupported": "no int4 here"}


def test_an_arm_that_makes_too_much_fails() -> None:
    server = Server(lambda settings: Echo(settings, extra=1))
    loaded(server)
    with pytest.raises(RuntimeError, match=r"asked for \[5\] tokens, got \[6\]"):
        ask(server, "run", work=[{"prompt": [3], "num_output": 5}])


def test_what_is_sent_is_what_arrives() -> None:
    sent = json.loads(json.dumps({"case": asdict(CASES["mixed-64"])}))
    assert case_of(sent) == CASES["mixed-64"]
    assert work_of({"work": [asdict(Work((1, 2), 3))]}) == [Work((1, 2), 3)]
    values = {**asdict(SETTINGS), "folder": "/models/x", "cache": "/cache"}
    assert settings_of({"settings": values}) == SETTINGS
