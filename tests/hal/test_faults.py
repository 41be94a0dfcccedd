"""Faults of the device seen from Python: who is told what, and that the others are unharmed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_checkpoints import make_checkpoint

from hal import LLM, AsyncLLM, SamplingParams
from hal.engine.request import FinishReason, Output, Request
from hal.errors import NOT_FINITE, DeviceOutOfMemory, EngineError
from hal.profiles import find_profile

PROMPTS = ("The quick brown fox", "def add(a, b):", "jumps over the lazy dog")
PARAMS = SamplingParams(temperature=0.8, seed=7, max_tokens=6, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def open_llm(folder: Path, device: str) -> LLM:
    return LLM(str(folder), device=device, max_num_seqs=4, max_model_len=64)


def answer(llm: LLM, prompt: str) -> list[object]:
    """Token ids and log probabilities, to the last bit."""
    (result,) = llm.generate(prompt, PARAMS)
    choice = result.outputs[0]
    return [list(choice.token_ids), choice.logprobs, choice.finish_reason]


def clean_answers(folder: Path, device: str) -> list[list[object]]:
    with open_llm(folder, device) as llm:
        return [answer(llm, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("pose", ["null", "null:h100"])
def test_nan_ends_that_steps_request_and_harms_no_other(folder: Path, pose: str) -> None:
    clean = clean_answers(folder, pose)
    with open_llm(folder, f"{pose}{':' if pose == 'null' else ','}nan@8") as llm:
        assert answer(llm, PROMPTS[0]) == clean[0]  # steps 1 to 6
        with pytest.raises(EngineError, match="output token 1 were not finite") as caught:
            answer(llm, PROMPTS[1])
        assert caught.value.code == NOT_FINITE
        assert answer(llm, PROMPTS[2]) == clean[2]
        assert answer(llm, PROMPTS[1]) == clean[1], "nothing broken stayed in the prefix cache"


@pytest.mark.parametrize("arch", ["gpt2", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe"])
def test_nan_reaches_the_logits_of_every_architecture(tmp_path: Path, arch: str) -> None:
    with open_llm(make_checkpoint(tmp_path, arch), "null:nan@2") as llm:
        with pytest.raises(EngineError, match="output token 1 were not finite"):
            answer(llm, PROMPTS[0])
        assert len(answer(llm, PROMPTS[1])) == 3


def test_nan_ends_every_request_of_its_step(folder: Path) -> None:
    with open_llm(folder, "null:nan@2") as llm:
        engine = llm._open().engine
        for name in ("a", "b"):
            engine.add(Request(request_id=name, prompt_token_ids=(5, 6, 7), params=PARAMS))
        assert {o.request_id: o.error_code for o in engine.step()} == {"a": None, "b": None}
        ended: list[Output] = engine.step()
        assert {o.request_id: o.finish_reason for o in ended} == dict.fromkeys(
            ("a", "b"), FinishReason.ERROR
        )
        assert {o.error_code for o in ended} == {NOT_FINITE}
        assert engine.stats().num_blocks_used == 0


def test_oom_in_a_step_carries_its_code_and_sizes(folder: Path) -> None:
    clean = clean_answers(folder, "null")
    with open_llm(folder, "null:oom@3") as llm:
        with pytest.raises(EngineError) as caught:
            answer(llm, PROMPTS[0])
        assert caught.value.code == DeviceOutOfMemory.code
        assert isinstance(caught.value.__cause__, DeviceOutOfMemory)
        text = caught.value.message
        assert text.startswith("step 3 failed: DeviceOutOfMemory: null device")
        assert "(injected by oom@3)" in text and " B wanted, 0 B free, " in text
        assert answer(llm, PROMPTS[1]) == clean[1]


def test_faults_count_steps_as_the_engine_does_after_a_failed_one(folder: Path) -> None:
    with open_llm(folder, "null:oom@2,oom@5") as llm:
        steps = []
        for prompt in PROMPTS:
            try:
                answer(llm, prompt)
            except EngineError as error:
                steps.append(error.message.partition(" failed")[0])
        assert steps == ["step 2", "step 5"]


def test_oom_while_loading_is_the_devices_own_error(folder: Path) -> None:
    with pytest.raises(DeviceOutOfMemory, match=r"injected by oom@0\).* wanted, 0 B free"):
        open_llm(folder, "null:h100,oom@0")


def test_coroutines_are_told_the_code_too(folder: Path) -> None:
    async def run() -> EngineError:
        async with AsyncLLM(str(folder), device="null:oom@2", max_model_len=64) as llm:
            with pytest.raises(EngineError) as caught:
                await llm.generate(PROMPTS[0], PARAMS)
            (result,) = await llm.generate(PROMPTS[1], PARAMS)
            assert result.outputs[0].finish_reason == "length"
            return caught.value

    assert asyncio.run(run()).code == DeviceOutOfMemory.code


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Ctrl-C, from a timer."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_hang_can_be_interrupted_and_the_engine_goes_on(folder: Path) -> None:
    clean = clean_answers(folder, "null")
    with open_llm(folder, "null:hang@2") as llm:
        with interrupt_after(0.5), pytest.raises(KeyboardInterrupt):
            answer(llm, PROMPTS[0])
        assert answer(llm, PROMPTS[1]) == clean[1]


def test_a_posing_llm_tells_what_it_stands_for(folder: Path) -> None:
    with open_llm(folder, "null:mi300x") as llm:
        assert llm.posed is not None
        assert llm.posed.capabilities.arch == "gfx942"
        assert llm.device_reason.startswith("poses as AMD Instinct MI300X")
        assert llm.posed.plan.total_bytes == find_profile("mi300x").memory_bytes
    with open_llm(folder, "null") as llm:
        assert llm.posed is None
