"""Embeddings from the engine against transformers' hidden states, on tiny random models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hal import LLM, SamplingParams
from hal.conformance.limits import Float64, relative_l2
from hal.conformance.tiny_checkpoint import write_model
from hal.conformance.tiny_models import SHAPES, make_model
from hal.dtypes import DType
from hal.engine.batch import Pools, StepResult
from hal.engine.hidden_states import PendingHiddenStates
from hal.engine.request import Output, Pooling
from hal.errors import ContextLengthError, RequestError

LIMIT = 1e-5  # what transformers keeps in float32 whatever the model's dtype, and our float32
POOLINGS = ("last", "mean")


def prompts_of(seed: int = 5) -> list[list[int]]:
    """Of many lengths; the last two share a prefix."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(1, 151, n).tolist() for n in (1, 2, 17, 40, 70)]
    return [*found, found[-1][:50] + [3, 4, 5]]


def expected(folder: Path, prompts: Sequence[Sequence[int]], pooling: str) -> list[Float64]:
    config = transformers.AutoConfig.from_pretrained(folder, bos_token_id=0, eos_token_id=0)
    theirs = transformers.AutoModel.from_pretrained(
        folder, config=config, dtype=torch.float64, attn_implementation="eager"
    )
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        theirs.set_experts_implementation("eager")
    with torch.no_grad():
        states = [theirs.eval()(torch.tensor([p])).last_hidden_state[0] for p in prompts]
    pooled = [s[-1] if pooling == "last" else s.mean(0) for s in states]
    return [np.asarray(each.numpy(), np.float64) for each in pooled]


def embedded(llm: LLM, prompts: list[list[int]], pooling: str) -> list[Float64]:
    results = llm.embed(prompts, pooling=pooling, normalize=False)
    assert [result.prompt_token_ids for result in results] == prompts
    return [np.array(result.outputs.embedding, np.float64) for result in results]


def vector(output: Output) -> Float64:
    assert output.embedding is not None
    return np.frombuffer(output.embedding, "<f4").astype(np.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    write_model(make_model("llama", DType.FLOAT32), folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    settings: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_model_len": 96,
        "max_num_batched_tokens": 24,
    }
    with LLM(str(folder), device="cpu", dtype="float32", block_size=16, **settings) as llm:
        yield llm


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("model_type", SHAPES)
def test_pooled_states_are_those_of_transformers(
    model_type: str, pooling: str, tmp_path: Path
) -> None:
    write_model(make_model(model_type, DType.FLOAT32), tmp_path)
    prompts = prompts_of()
    with LLM(str(tmp_path), device="cpu", dtype="float32", max_model_len=96) as llm:
        found = embedded(llm, prompts, pooling)
    for ours, theirs in zip(found, expected(tmp_path, prompts, pooling), strict=True):
        assert relative_l2(ours, theirs) < LIMIT


@pytest.mark.parametrize("pooling", POOLINGS)
def test_chunks_and_cached_prefixes_change_nothing(llm: LLM, folder: Path, pooling: str) -> None:
    """24 tokens a step: most prompts come in pieces, beside each other, and twice."""
    prompts = prompts_of()
    for _ in range(2):
        found = embedded(llm, prompts, pooling)
        for ours, theirs in zip(found, expected(folder, prompts, pooling), strict=True):
            assert relative_l2(ours, theirs) < LIMIT
    assert llm._open().engine.stats().num_blocks_used == 0


def test_preempted_prompts_start_their_mean_again(folder: Path) -> None:
    prompts = prompts_of()[2:]
    tight: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 24, "block_size": 16}
    with LLM(str(folder), device="cpu", dtype="float32", max_model_len=96, **tight) as llm:
        engine = llm._open().engine
        requests = [llm._open().pooled(prompt, Pooling.MEAN) for prompt in prompts]
        for request in requests:
            engine.add(request)
        outputs = engine.step()
        scheduler = engine.scheduler
        begun = [seq for seq in scheduler.slots.seqs if seq is not None]
        assert any(scheduler.slots.num_computed[seq.slot] for seq in begun)
        for seq in begun:
            scheduler._preempt(seq)
        while engine.has_work:
            outputs += engine.step()
        found = {output.request_id: vector(output) for output in outputs}
    for request, theirs in zip(requests, expected(folder, prompts, "mean"), strict=True):
        assert relative_l2(found[request.request_id], theirs) < LIMIT


def test_generation_beside_it_is_unharmed(llm: LLM, folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    alone = llm.generate([[7, 8, 9]], params)[0].outputs[0].token_ids
    session = llm._open()
    generating = session.collector([7, 8, 9], params)
    pooled = [session.pooled(p, Pooling.LAST) for p in prompts_of()]
    for request in (generating.request, *pooled):
        session.engine.add(request)
    tokens: list[int] = []
    embeddings = {}
    while session.engine.has_work:
        for output in session.engine.step():
            if output.embedding is None:
                tokens += output.token_ids
            else:
                embeddings[output.request_id] = vector(output)
    assert tokens == alone
    for request, theirs in zip(pooled, expected(folder, prompts_of(), "last"), strict=True):
        assert relative_l2(embeddings[request.request_id], theirs) < LIMIT


def test_dimensions_and_length(llm: LLM) -> None:
    whole = np.array(llm.embed([[1, 2, 3]], normalize=False)[0].outputs.embedding)
    unit = np.array(llm.embed([1, 2, 3])[0].outputs.embedding)
    few = np.array(llm.embed([1, 2, 3], dimensions=5)[0].outputs.embedding)
    assert np.allclose(unit, whole / np.linalg.norm(whole), atol=1e-6)
    assert np.allclose(few, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)


def test_what_is_wrong_is_named(llm: LLM) -> None:
    with pytest.raises(RequestError, match="dimensions must be from 1 to"):
        llm.embed([1, 2], dimensions=10_000)
    with pytest.raises(RequestError, match="pooling must be last or mean; got 'cls'"):
        llm.embed([1, 2], pooling="cls")
    with pytest.raises(ContextLengthError):
        llm.embed([[1] * 96])
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.embed([[1], []])
    assert not llm._open().engine.has_work


class _Step:
    def wait(self) -> StepResult:
        tokens = np.zeros((3, 1), np.int32)
        return StepResult(
            token_ids=tokens, num_tokens=np.ones(3, np.int32), row_errors=np.zeros(3, np.bool_)
        )


def test_states_that_are_not_finite_fail_their_row() -> None:
    none = np.empty((0, 4), np.int32)
    pools = Pools(last=np.array([0, 2], np.int32), mean=none[:, 0], chunks=none)
    states = np.array([[1, np.nan], [np.inf, 0], [1, 2]], np.float32)
    pending = PendingHiddenStates(
        step=_Step(),
        sample_slots=np.arange(3, dtype=np.int32),
        pools=pools,
        download=lambda x: states,
        sampled=states,  # type: ignore[arg-type]  # read by `download` only
        every=None,
        sums={},
    )
    result = pending.wait()
    assert result.row_errors.tolist() == [True, False, False]
    assert result.hidden is not None and result.hidden[1].tolist() == [1, 2]
