"""The circuit breaker: on a clock of the test's own, then in a server whose engine fails."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fake_serving import fake_arguments, rule, serving, write_byte_model, write_script

from hal.server.breaker import Breaker, Circuit
from hal.server.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def run(breaker: Breaker, name: str, *, is_failed: bool) -> None:
    breaker.check()
    breaker.start(name)
    breaker.end(name, is_failed=is_failed)
    breaker.leave(name)


def state(breaker: Breaker) -> Circuit:
    """Asked anew; mypy takes a property for unchanged."""
    return breaker.state


def refused(breaker: Breaker) -> ApiError:
    with pytest.raises(ApiError) as caught:
        breaker.check()
    assert (caught.value.status, caught.value.code) == (503, "engine_unavailable")
    return caught.value


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for i in range(10):
        run(breaker, str(i), is_failed=True)
    assert breaker.state is Circuit.OPEN
    return breaker


def test_half_may_fail_and_old_failures_are_forgotten() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for i in range(40):
        run(breaker, str(i), is_failed=i % 2 == 1)
    clock.now += 31
    for i in range(9):
        run(breaker, str(i), is_failed=True)
    assert state(breaker) is Circuit.CLOSED
    run(breaker, "x", is_failed=True)
    assert state(breaker) is Circuit.OPEN


def test_a_probe_that_comes_through_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    error = refused(breaker)
    assert "10 of the last 10 requests failed" in error.message
    assert 5 <= int(error.headers["retry-after"]) <= 7
    clock.now += 5
    assert state(breaker) is Circuit.HALF_OPEN
    breaker.check()
    breaker.start("probe")
    refused(breaker)  # one at a time
    breaker.end("probe", is_failed=False)
    assert state(breaker) is Circuit.CLOSED
    run(breaker, "next", is_failed=True)  # the failures before count no more
    breaker.check()


def test_failed_probes_make_the_pause_longer() -> None:
    clock = Clock()
    breaker = opened(clock)
    pauses = []
    for _ in range(6):
        before = clock.now
        while breaker.state is Circuit.OPEN:
            clock.now += 1
        pauses.append(clock.now - before)
        run(breaker, "probe", is_failed=True)
    assert pauses == [5, 10, 20, 40, 60, 60]


def test_a_probe_whose_client_leaves_is_followed_by_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    breaker.start("gone")
    breaker.leave("gone")
    run(breaker, "stays", is_failed=False)
    assert breaker.state is Circuit.CLOSED


def test_requests_of_before_decide_nothing() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    breaker.end("old", is_failed=False)
    assert breaker.state is Circuit.HALF_OPEN


def test_in_a_server(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model")
    script = write_script(tmp_path / "script.json", [rule("nan", error_at=1)])
    with serving(fake_arguments(model, script)) as server:
        server.wait_ready()

        def ask(prompt: str) -> httpx.Response:
            body = {"prompt": prompt, "max_tokens": 3}
            return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)

        assert [ask("nan").status_code for _ in range(10)] == [500] * 10
        answer = ask("fine")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert 5 <= int(answer.headers["retry-after"]) <= 7
        assert server.metric("circuit_state") == Circuit.OPEN
        assert any("circuit open for 5 s" in line for line in server.error_lines)
