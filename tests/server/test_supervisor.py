"""A dead, stopped or hung engine process is noticed, told to everybody waiting, and gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_serving import EOS, ids, is_alive, rule, write_byte_model, write_script

from hal.config import EngineConfig
from hal.engine.request import FinishReason, Output, Request
from hal.errors import (
    ENGINE_DIED,
    ENGINE_HUNG,
    ENGINE_SILENT,
    ContextLengthError,
    EngineError,
    HalError,
    RequestError,
    WeightsError,
)
from hal.sampling_params import SamplingParams
from hal.server.async_engine import AsyncEngine, Sink
from hal.server.errors import ApiError
from hal.server.messages import Add, Start
from hal.server.supervisor import EngineProcess, EngineState, WatchdogLimits

COMMAND = [sys.executable, "-P", "-m", "hal.cli.engine_process"]
TIMEOUT_S = 60

Rules = Sequence[dict[str, object]]


class Running:
    """An engine process under test and the task that serves it."""

    def __init__(self, engine: AsyncEngine, task: asyncio.Task[HalError]) -> None:
        self.engine = engine
        self.task = task

    async def failure(self) -> HalError:
        return await asyncio.wait_for(self.task, TIMEOUT_S)

    async def submit(self, prompt: str, request_id: str = "r", max_tokens: int = 50) -> Sink:
        sink: Sink = asyncio.Queue()
        params = SamplingParams(max_tokens=max_tokens)
        await self.engine.submit(request(prompt, request_id, params), sink)
        return sink


def request(prompt: str, request_id: str, params: SamplingParams) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(ids(prompt)),
        params=params,
        eos_token_ids=frozenset({EOS}),
    )


@asynccontextmanager
async def running(
    folder: Path, rules: Rules = (), limits: WatchdogLimits | None = None, **settings: object
) -> AsyncIterator[Running]:
    model = write_byte_model(folder / "model")
    script = write_script(folder / "script.json", rules, **settings)
    process = EngineProcess(COMMAND, limits)
    process.spawn()
    engine = AsyncEngine(process)
    start = Start(EngineConfig(model=str(model)), str(script))
    task = asyncio.create_task(engine.run(start))
    try:
        ready = asyncio.create_task(engine.ready.wait())
        await asyncio.wait({ready, task}, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        yield Running(engine, task)
    finally:
        task.cancel()
        await process.stop()
        assert not is_alive(process.pid)


async def tokens_of(sink: Sink) -> list[int]:
    tokens: list[int] = []
    while True:
        item = await asyncio.wait_for(sink.get(), TIMEOUT_S)
        assert isinstance(item, Output), item
        tokens += item.token_ids
        if item.finish_reason is not None:
            return tokens


def test_it_serves_and_stops(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as it:
            process = it.engine.process
            assert it.engine.is_ready
            assert await tokens_of(await it.submit("ab")) == [*ids("ab"), EOS]
            os.kill(process.pid, signal.SIGINT)  # Ctrl-C is the front's business
            os.kill(process.pid, signal.SIGTERM)
            assert await tokens_of(await it.submit("cd")) == [*ids("cd"), EOS]
            assert it.engine.num_inflight == 0
        assert process.state is EngineState.STOPPED

    asyncio.run(run())


def test_refusals_of_the_engine(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as it:
            with pytest.raises(ContextLengthError) as caught:
                await it.submit("ab", max_tokens=511)
            assert caught.value.param == "max_tokens"
            assert it.engine.num_inflight == 0
            wrong = SamplingParams()
            object.__setattr__(wrong, "temperature", 9.0)  # as a front with a bug would send
            entry: Sink = asyncio.Queue()
            with pytest.raises(RequestError, match="temperature"):
                await it.engine.submit(request("ab", "wrong", wrong), entry)
            assert await tokens_of(await it.submit("ab")) == [*ids("ab"), EOS]

    asyncio.run(run())


def test_abort_is_legal_in_every_state(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path, [rule("slow", step_delay_s=0.01)]) as it:
            assert not it.engine.abort("never heard of")
            await it.submit("slow", "a", max_tokens=400)
            assert it.engine.abort("a")
            assert not it.engine.abort("a")
            done = await it.submit("b", "b")
            assert await tokens_of(done) == [*ids("b"), EOS]
            assert not it.engine.abort("b")
            await asyncio.wait_for(it.engine.drained(), TIMEOUT_S)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGKILL, ENGINE_DIED, "SIGKILL"), (signal.SIGSTOP, ENGINE_SILENT, "heartbeat")],
)
def test_a_killed_or_stopped_process(
    tmp_path: Path, number: signal.Signals, code: str, word: str
) -> None:
    async def run() -> None:
        limits = WatchdogLimits(heartbeat_timeout_s=2.0)
        async with running(tmp_path, [rule("slow", step_delay_s=0.01)], limits) as it:
            sink = await it.submit("slow", max_tokens=400)
            os.kill(it.engine.process.pid, number)
            failure = await it.failure()
            assert (failure.code, type(failure)) == (code, EngineError)
            assert word in failure.message
            assert it.engine.process.state is EngineState.FAILED
            assert not is_alive(it.engine.process.pid)
            items = [sink.get_nowait() for _ in range(sink.qsize())]
            assert items[-1] is failure
            with pytest.raises(ApiError) as caught:
                await it.submit("late")
            assert (caught.value.status, caught.value.code) == (503, "engine_unavailable")

    asyncio.run(run())


def test_a_hung_step(tmp_path: Path) -> None:
    async def run() -> None:
        limits = WatchdogLimits(step_timeout_s=1.5)
        async with running(tmp_path, [rule("hang", hang_at=2)], limits) as it:
            await it.submit("hang")
            failure = await it.failure()
            assert failure.code == ENGINE_HUNG
            assert "step 2" in failure.message
            assert not is_alive(it.engine.process.pid)

    asyncio.run(run())


def test_an_unexpected_exception_of_a_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run() -> HalError:
        async with running(tmp_path, [rule("raise", raise_at=2)]) as it:
            await it.submit("raise")
            return await it.failure()

    failure = asyncio.run(run())
    assert (failure.code, failure.exit_code) == ("HAL-E600", 6)
    assert "RuntimeError: scripted failure of a step" in failure.message
    assert "Traceback" in capfd.readouterr().err  # a bug: the place is worth a traceback


def test_failed_steps_end_their_requests_until_there_are_three_in_a_row(tmp_path: Path) -> None:
    async def fails(it: Running, request_id: str) -> None:
        sink = await it.submit("fail", request_id)
        item = await asyncio.wait_for(sink.get(), TIMEOUT_S)
        assert isinstance(item, Output)
        assert item.finish_reason is FinishReason.ERROR

    async def run() -> HalError:
        async with running(tmp_path, [rule("fail", fail_at=1)]) as it:
            await fails(it, "1")
            await fails(it, "2")
            assert await tokens_of(await it.submit("fine")) == [*ids("fine"), EOS]
            await fails(it, "3")
            await fails(it, "4")
            await it.submit("fail", "5")
            return await it.failure()

    assert asyncio.run(run()).message == "scripted failure of the device"


def test_a_typed_error_of_the_start_arrives_as_itself(tmp_path: Path) -> None:
    record = {"kind": "WeightsError", "code": "HAL-E210", "message": "a.safetensors is truncated"}

    async def run() -> HalError:
        async with running(tmp_path, start_error=record) as it:
            return await it.failure()

    failure = asyncio.run(run())
    assert (type(failure), failure.exit_code) == (WeightsError, 3)
    assert str(failure) == "HAL-E210: a.safetensors is truncated"


def test_messages_to_a_dead_process_are_lost_quietly(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as it:
            process = it.engine.process
            os.kill(process.pid, signal.SIGKILL)
            await it.failure()
            process.send(Add(request("a", "a", SamplingParams())))
            assert not it.engine.abort("a")

    asyncio.run(run())
