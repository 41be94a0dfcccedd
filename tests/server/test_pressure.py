"""Stages of pressure: what each refuses, and that the server says so."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from pathlib import Path

import httpx
import pytest
from fake_serving import fake_arguments, ids, rule, serving, write_byte_model, write_script

from hal.engine.request import Request
from hal.sampling_params import SamplingParams
from hal.server.admission import Admission
from hal.server.errors import ApiError
from hal.server.loop_lag import LoopLag
from hal.server.pressure import MOST_DEFAULT_TOKENS, Pressure, Stage
from hal.server.queue_limits import QueueLimits


def request(priority: int = 0, timeout_s: float | None = None) -> Request:
    params = SamplingParams(max_tokens=1)
    return Request(
        request_id="x",
        prompt_token_ids=(1,),
        params=params,
        priority=priority,
        timeout_s=timeout_s,
    )


class Late(LoopLag):
    """As late as it is told to be."""

    def __init__(self, seconds: float) -> None:
        self._lags = deque([seconds])


def loaded(num_waiting: int, lag_s: float = 0.0) -> tuple[Pressure, Admission]:
    admission = Admission(QueueLimits(max_requests=100, max_tokens=1000))
    for i in range(num_waiting):
        admission.enter(str(i), 1)
    return Pressure(admission, Late(lag_s)), admission


@pytest.mark.parametrize(
    ("num_waiting", "stage", "lets_in"),
    [
        (0, Stage.NORMAL, {"plain", "patient", "dated", "both"}),
        (50, Stage.NORMAL, {"plain", "patient", "dated", "both"}),
        (51, Stage.SHORT_DEFAULTS, {"plain", "patient", "dated", "both"}),
        (81, Stage.URGENT_ONLY, {"plain", "dated"}),
        (96, Stage.DEADLINES_ONLY, {"dated"}),
    ],
)
def test_who_is_let_in(num_waiting: int, stage: Stage, lets_in: set[str]) -> None:
    pressure, _ = loaded(num_waiting)
    asked = {
        "plain": request(),
        "patient": request(priority=1),
        "dated": request(timeout_s=9),
        "both": request(priority=1, timeout_s=9),
    }
    found = set()
    for name, one in asked.items():
        try:
            pressure.check(one)
        except ApiError as error:
            assert (error.status, error.code) == (503, "server_overloaded")
            assert int(error.headers["retry-after"]) >= 1
        else:
            found.add(name)
    assert pressure.stage is stage
    assert found == lets_in


def test_prompt_tokens_fill_the_queue_as_requests_do() -> None:
    pressure, admission = loaded(1)
    admission.enter("long", 899)
    assert pressure.stage is Stage.URGENT_ONLY


def test_one_long_prompt_is_no_pressure() -> None:
    admission = Admission(QueueLimits(max_requests=100, max_tokens=1000))
    admission.enter("long", 10**6)
    assert Pressure(admission, LoopLag()).stage is Stage.NORMAL


def test_a_late_loop_matters_while_somebody_waits() -> None:
    assert loaded(1, lag_s=0.3)[0].stage is Stage.DEADLINES_ONLY
    assert loaded(0, lag_s=0.3)[0].stage is Stage.NORMAL


def test_a_stage_does_not_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    pressure, admission = loaded(51)
    with caplog.at_level(logging.WARNING, "hal.server"):
        for i in range(10):
            assert pressure.stage is Stage.SHORT_DEFAULTS
            admission.leave(str(i))
            assert pressure.stage is Stage.SHORT_DEFAULTS
            admission.enter(str(i), 1)
        for i in range(11):
            admission.leave(str(i))
        assert pressure.stage is Stage.NORMAL
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "pressure stage 1",
        "pressure stage 0",
    ]


def test_in_a_server(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model")
    rules = [rule("slow", tokens=ids("x" * 3), step_delay_s=0.2)]
    script = write_script(tmp_path / "script.json", rules, max_model_len=4096, max_num_seqs=1)
    arguments = [*fake_arguments(model, script), "--max-queue-size", "6", "--priority-levels", "3"]
    with serving(arguments) as server:
        server.wait_ready()
        url = f"{server.url}/v1/completions"

        async def ask_all() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=30) as client:
                waiting = [
                    asyncio.create_task(client.post(url, json={"prompt": "slow", "max_tokens": 9}))
                    for _ in range(6)
                ]
                while server.metric("pressure_stage") < Stage.SHORT_DEFAULTS:
                    await asyncio.sleep(0.01)
                await client.post(url, json={"prompt": "slow", "max_tokens": 9, "priority": 1})
                return await asyncio.gather(*waiting)

        asyncio.run(ask_all())
        assert any(f"end at {MOST_DEFAULT_TOKENS} tokens" in line for line in server.error_lines)
        answer = httpx.post(url, json={"prompt": "hi", "max_tokens": 2, "priority": 3})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "priority")
        assert "from 0, the most urgent, to 2" in answer.json()["error"]["message"]
