"""The bounded queue: on a clock of the test's own, then in a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from fake_serving import fake_arguments, ids, rule, serving, write_byte_model, write_script

from hal.server.admission import Admission
from hal.server.errors import ApiError
from hal.server.queue_limits import QueueLimits


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def refused(admission: Admission, num_tokens: int, timeout_s: float | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admission.check(num_tokens, timeout_s)
    return caught.value


def test_both_limits() -> None:
    admission = Admission(QueueLimits(max_requests=2, max_tokens=100), Clock())
    admission.check(1000, None)  # one alone is always taken
    admission.enter("a", 60)
    admission.check(40, None)
    error = refused(admission, 41)
    assert (error.status, error.code) == (503, "server_overloaded")
    assert "60 prompt tokens are waiting and this has 41; the limit is 100" in error.message
    admission.enter("b", 1)
    assert "2 requests are waiting (--max-queue-size)" in refused(admission, 1).message
    admission.start("a")
    admission.leave("a")  # again, when it ends
    assert (admission.num_waiting, admission.num_waiting_tokens) == (1, 1)
    admission.check(99, None)
    admission.leave("b")
    assert (admission.num_waiting, admission.num_waiting_tokens) == (0, 0)


def test_a_wait_is_told_from_how_fast_the_queue_moved() -> None:
    """100 tokens a second: 1000 that wait are ten seconds."""
    clock = Clock()
    admission = Admission(QueueLimits(max_requests=28, max_tokens=10**6), clock)
    for i in range(38):
        admission.enter(str(i), 100)
    assert admission.expected_wait_s() is None
    for i in range(28):
        clock.now += 1.0
        admission.start(str(i))
    assert admission.expected_wait_s() == pytest.approx(10.0)
    admission.check(100, None)
    admission.check(100, 11.0)
    error = refused(admission, 100, 9.0)
    assert (error.status, error.code) == (504, "deadline_exceeded")
    assert error.headers == {"x-should-retry": "false"}
    assert "10.0 s" in error.message
    for i in range(18):
        admission.enter(f"more {i}", 100)
    after = int(refused(admission, 1).headers["retry-after"])
    assert 14 <= after <= 18  # half of 28 s, and jitter


def test_an_idle_hour_is_not_a_slow_queue() -> None:
    clock = Clock()
    admission = Admission(clock=clock)
    for i in range(20):
        admission.enter(str(i), 10)
    for i in range(20):
        clock.now += 0.1
        admission.start(str(i))
    clock.now += 3600
    admission.enter("x", 10)
    assert admission.expected_wait_s() is None
    admission.check(10, 0.001)


def test_a_full_queue_in_a_server(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model")
    script = write_script(
        tmp_path / "script.json", [rule("slow", tokens=ids("x" * 9), step_delay_s=0.5)]
    )
    arguments = [*fake_arguments(model, script), "--max-queue-size", "3"]
    with serving(arguments) as server:
        server.wait_ready()

        async def ask_all() -> list[httpx.Response]:
            body = {"prompt": "slow", "max_tokens": 2}
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                jobs = [client.post("/v1/completions", json=body) for _ in range(20)]
                return await asyncio.gather(*jobs)

        answers = asyncio.run(ask_all())
        refusals = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert len(answers) - len(refusals) >= 3
        for answer in refusals:
            assert answer.json()["error"]["code"] == "server_overloaded"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        again = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert again.status_code == 200
        assert server.metric("requests_rejected_total", reason="server_overloaded") == len(refusals)
