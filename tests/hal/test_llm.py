"""The Python API as a vLLM user would call it, on tiny random checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoints import make_checkpoint

from hal import LLM, AsyncLLM, SamplingParams
from hal.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    ModelError,
    RequestError,
    UnsupportedError,
)

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def llm(folder: Path, device_name: str) -> Iterator[LLM]:
    with LLM(str(folder), device=device_name, max_num_seqs=8, max_model_len=128) as llm:
        yield llm


def blocks_used(llm: LLM) -> int:
    return llm._open().engine.stats().num_blocks_used


def test_results_keep_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["The quick brown fox", "def add(a, b):", "x"]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (20, 3, 9)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [20, 3, 9]
    assert all(output.outputs[0].finish_reason == "length" for output in outputs)
    tokenizer = llm.get_tokenizer()
    for output in outputs:
        assert output.prompt_token_ids == tokenizer.encode(str(output.prompt))
        assert output.outputs[0].text == tokenizer.decode(output.outputs[0].token_ids)
    assert blocks_used(llm) == 0


def test_text_and_token_ids_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("The quick brown fox")
    answers = [
        llm.generate(prompt, GREEDY)[0].outputs[0].token_ids
        for prompt in ("The quick brown fox", ids, {"prompt_token_ids": ids})
    ]
    assert answers[0] == answers[1] == answers[2]


def test_neighbours_do_not_change_a_seeded_answer(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=7, max_tokens=16, ignore_eos=True)
    alone = llm.generate("The quick", params)[0].outputs[0].token_ids
    others = SamplingParams(temperature=1.5, seed=99, max_tokens=30, ignore_eos=True)
    crowd = llm.generate(["def", "The quick", "Gr"], [others, params, others])
    assert crowd[1].outputs[0].token_ids == alone
    different = SamplingParams(temperature=1.0, top_p=0.9, seed=8, max_tokens=16, ignore_eos=True)
    assert llm.generate("The quick", different)[0].outputs[0].token_ids != alone


def test_n_choices_differ_and_share_the_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=10, ignore_eos=True)
    prompt = list(range(5, 45))
    before = llm._open().engine.stats().num_prompt_tokens
    output = llm.generate([prompt], params)[0]
    assert llm._open().engine.stats().num_prompt_tokens == before + len(prompt)
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    assert blocks_used(llm) == 0


def test_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    full = llm.generate("The quick brown fox", GREEDY)[0].outputs[0].text
    stop = full[4:6]
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, stop=[stop])
    choice = llm.generate("The quick brown fox", params)[0].outputs[0]
    assert choice.text == full[: full.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert blocks_used(llm) == 0


def test_a_choice_ended_by_a_stop_string_costs_no_more_tokens(llm: LLM) -> None:
    params = SamplingParams(n=2, temperature=1.0, seed=1, max_tokens=24, ignore_eos=True)
    first, second = llm.generate("The quick", params)[0].outputs
    stop = next(char for char in first.text[:8] if char not in second.text)
    stats = llm._open().engine.stats
    before = stats().num_generated_tokens
    stopped, whole = llm.generate("The quick", replace(params, stop=[stop]))[0].outputs
    assert (stopped.stop_reason, whole.token_ids) == (stop, second.token_ids)
    made = stats().num_generated_tokens - before
    assert made == len(stopped.token_ids) + len(whole.token_ids) < 2 * 24


def test_logprobs_name_the_chosen_token_and_the_best(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=3, ignore_eos=True)
    choice = llm.generate("The quick", params)[0].outputs[0]
    assert choice.logprobs is not None and len(choice.logprobs) == 5
    for token, position in zip(choice.token_ids, choice.logprobs, strict=True):
        assert len(position) == 3
        assert position[token].rank == 1
        assert position[token].logprob == max(entry.logprob for entry in position.values())
        assert all(entry.logprob <= 0.0 for entry in position.values())
    total = sum(p[t].logprob for t, p in zip(choice.token_ids, choice.logprobs, strict=True))
    assert choice.cumulative_logprob == pytest.approx(total)


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    output = llm.chat(messages, GREEDY)[0]
    rendered = llm.get_tokenizer().decode(output.prompt_token_ids, skip_special_tokens=False)
    assert rendered == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert len(output.outputs[0].token_ids) == 12


def test_stream_adds_up_to_the_answer(llm: LLM) -> None:
    whole = llm.generate("The quick", GREEDY)[0].outputs[0]
    deltas = list(llm.stream("The quick", GREEDY))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].finish_reason == "length"
    assert sum(len(delta.token_ids) for delta in deltas) == 12


def test_closing_a_stream_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream("The quick", GREEDY)
    next(stream)
    assert blocks_used(llm) > 0
    stream.close()  # type: ignore[attr-defined]
    assert blocks_used(llm) == 0


def test_bad_prompts_name_the_numbers(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match=r"200 tokens.*128"):
        llm.generate([[5] * 200], GREEDY)
    with pytest.raises(ContextLengthError, match=r"lower max_tokens to 118"):
        llm.generate([[5] * 10], SamplingParams(max_tokens=500))
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[]], GREEDY)
    with pytest.raises(RequestError, match="9999.*0 to 383"):
        llm.generate([[5, 9999]], GREEDY)
    with pytest.raises(RequestError, match="2 sampling params for 1"):
        llm.generate(["a"], [GREEDY, GREEDY])
    assert blocks_used(llm) == 0


def test_plan_and_explain_say_why(llm: LLM) -> None:
    explained = llm.explain()
    kernels = explained["kernels"]
    assert isinstance(kernels, list)
    linear = next(kernel for kernel in kernels if kernel["op"] == "linear")
    assert linear["rejected"] and all(entry["reason"] for entry in linear["rejected"])
    assert llm.plan.weights_bytes > 0 and llm.plan.kv_bytes > 0


def test_vllm_names_work_or_are_refused(folder: Path, device_name: str) -> None:
    with LLM(
        model=str(folder),
        device=device_name,
        gpu_memory_utilization=0.5,
        tensor_parallel_size=1,
        enable_prefix_caching=False,
        max_num_batched_tokens=256,
        seed=3,
    ) as llm:
        config = llm._open().built.resolved.config
        assert (config.memory, config.prefix_caching, config.seed) == (0.5, False, 3)
    with pytest.raises(UnsupportedError, match="pipeline_parallel_size"):
        LLM(str(folder), pipeline_parallel_size=2)
    with pytest.raises(UnsupportedError, match="trust_remote_code"):
        LLM(str(folder), trust_remote_code=True)
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(str(folder), max_modellen=12)


def test_missing_folder_and_closed_engine(folder: Path, tmp_path: Path, device_name: str) -> None:
    with pytest.raises(ModelError):
        LLM(str(tmp_path / "nothing"))
    llm = LLM(str(folder), device=device_name)
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate("x", GREEDY)


def test_async_llm_batches_concurrent_calls(folder: Path, llm: LLM, device_name: str) -> None:
    prompts = ["The quick", "def add", "x"]
    expected = [output.outputs[0].text for output in llm.generate(prompts, GREEDY)]

    async def run() -> list[str]:
        async with AsyncLLM(str(folder), device=device_name, max_model_len=128) as engine:
            first, rest = await asyncio.gather(
                engine.generate(prompts[0], GREEDY), engine.generate(prompts[1:], GREEDY)
            )
            streamed = [delta.text async for delta in engine.stream(prompts[0], GREEDY)]
            assert "".join(streamed) == expected[0]
            with pytest.raises(ContextLengthError):
                await engine.generate([[5] * 500], GREEDY)
            return [output.outputs[0].text for output in (*first, *rest)]

    assert asyncio.run(run()) == expected


def test_cancelling_a_stream_frees_its_blocks(folder: Path, device_name: str) -> None:
    async def run() -> int:
        async with AsyncLLM(str(folder), device=device_name, max_model_len=128) as engine:
            stream = engine.stream("The quick", GREEDY)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            # A later request is served after the abort, by the same thread.
            await engine.generate("x", SamplingParams(max_tokens=1))
            return engine._session.engine.stats().num_blocks_used

    assert asyncio.run(run()) == 0
