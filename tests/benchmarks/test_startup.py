"""Start-up times: a start from the cache is one, and a busy machine is waited for, not for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from pathlib import Path

import pytest
import record
import startup


class Clock:
    """Time that passes only while somebody sleeps; `busy` are the cores of others, per sleep."""

    def __init__(self, busy: Sequence[float]) -> None:
        self.now = self.used = 0.0
        self._busy = chain(busy, repeat(busy[-1]))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.used += seconds * next(self._busy)


@pytest.mark.parametrize(
    ("busy", "limit_s", "is_quiet", "waited_s"),
    [
        ([0.0], 10.0, True, 0.5),
        ([1.0, 0.3, 0.2], 10.0, True, 1.5),
        ([2.0], 10.0, False, 10.0),
        ([2.0], 0.0, False, 0.5),
    ],
)
def test_settling_ends_as_soon_as_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
    busy: list[float],
    limit_s: float,
    is_quiet: bool,
    waited_s: float,
) -> None:
    clock = Clock(busy)
    monkeypatch.setattr(startup, "time", clock)
    monkeypatch.setattr(startup, "busy_seconds", lambda: clock.used)
    assert startup.settle(limit_s) is is_quiet
    assert clock.now == pytest.approx(waited_s)


def test_rounds_are_interleaved_and_the_first_one_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def case(name: str, times: list[float]) -> Callable[[], float]:
        def measure() -> float:
            said.append(name)
            return times[said.count(name) - 1]

        return measure

    monkeypatch.setattr(startup, "settle", lambda limit_s: len(said) != 3)
    cases = {"a": case("a", [9.0, 2.0, 4.0]), "b": case("b", [9.0, 1.0, 3.0])}
    measured = startup.measure_all(cases, 2, 1.0)
    assert "".join(said) == "ababab"
    assert measured.seconds == {"a": [2.0, 4.0], "b": [1.0, 3.0]}
    assert measured.num_loud == 1
    assert startup.ratios(measured.seconds) == {"b": record.Spread(0.625, 0.5, 0.75, 2)}


class Starts:
    """Starts that read the entry where `reads` says so, and make it again otherwise."""

    def __init__(self, kept: Path, reads: Sequence[bool]) -> None:
        self._entry = kept / "0.packed"
        self._reads = iter(reads)
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        if next(self._reads):
            os.utime(self._entry)
        else:
            self._entry.parent.mkdir(exist_ok=True)
            part = self._entry.with_suffix(".part")
            part.write_text("weights")
            part.replace(self._entry)
        return float(self.count)


@pytest.mark.parametrize(
    ("reads", "counted"),
    [([False, True], 2.0), ([False, False, True], 3.0)],
)
def test_only_a_start_that_read_the_entry_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[bool], counted: float
) -> None:
    monkeypatch.setattr(startup, "wait_until_remembered", lambda folder: None)
    starts = Starts(tmp_path / "kept", reads)
    assert startup.from_cache(starts, tmp_path, tmp_path / "kept") == counted


def test_an_entry_that_is_never_read_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "wait_until_remembered", lambda folder: None)
    with pytest.raises(SystemExit, match="is not read"):
        startup.from_cache(Starts(tmp_path / "kept", [False] * 3), tmp_path, tmp_path / "kept")


def test_an_old_checkpoint_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_text("")
    slept: list[float] = []
    now = (tmp_path / "model.safetensors").stat().st_ctime
    monkeypatch.setattr(time, "sleep", slept.append)
    for age in (1.0, 60.5, 3600.0):
        monkeypatch.setattr(time, "time", lambda age=age: now + age)
        startup.wait_until_remembered(tmp_path)
    assert slept == pytest.approx([60.0, 0.5, 0.0])
