"""POST /v1/embeddings: the final hidden state of a decoder, pooled over each input."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.embedding import POOLING_PARAMS, check_dimensions, finished_embedding
from hal.engine.request import FinishReason, Output, Pooling, Request
from hal.errors import RequestError
from hal.server.async_engine import Sink
from hal.server.errors import invalid_value, request_lost
from hal.server.facts import facts_of
from hal.server.front import Front, caller_of, ignored_header, job_id, tenant_of
from hal.server.params import QueueTerms, check_token_ids, prompts_of, with_token_budget
from hal.server.schema import EmbeddingsBody, parse_body, shown
from hal.server.stream import unless_disconnected
from hal.server.usage import Usage
from hal.server.wire import json_response

MAX_INPUTS = 2048
NUM_AT_ONCE = 64
"""Inputs of one request inside the engine: others are served beside them."""


async def create_embeddings(front: Front, http: HttpRequest) -> Response:
    body = parse_body(await http.body(), EmbeddingsBody)
    front.check_model(body.model)
    pooling = _pooling(body.pooling)
    if body.encoding_format not in (None, "float", "base64"):
        raise invalid_value(
            f"encoding_format must be float or base64; got {shown(body.encoding_format)}",
            "encoding_format",
        )
    check_dimensions(body.dimensions, front.info.hidden_size)
    started_at, prompts = time.monotonic(), await _encode(front, body)
    caller = caller_of(http)
    terms = front.terms_of(QueueTerms(), caller)
    requests = [
        Request(
            request_id=front.engine.request_id(f"embd-{job_id(http)}"),
            prompt_token_ids=tuple(prompt),
            params=POOLING_PARAMS,
            pooling=pooling,
            priority=terms.priority,
            timeout_s=terms.timeout_s,
            tenant=tenant_of(caller),
        )
        for prompt in prompts
    ]
    num_tokens = sum(map(len, prompts))
    lease = front.quota_of(caller).admit(num_tokens)
    facts_of(http.scope).usage = Usage(num_prompt=num_tokens)
    try:
        pooled = await unless_disconnected(http.receive, _pool_all(front, requests))
    finally:
        lease.settle(num_tokens)
    front.metrics.request_finished(time.monotonic() - started_at, num_tokens, 0)
    vectors = [finished_embedding(data, body.dimensions) for data in pooled]
    is_base64 = body.encoding_format == "base64"
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(vector, is_base64)}
            for i, vector in enumerate(vectors)
        ],
        "model": front.served_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return json_response(answer, ignored_header(body))


def _pooling(wanted: str | None) -> Pooling:
    try:
        return Pooling.LAST if wanted is None else Pooling(wanted)
    except ValueError:
        known = " or ".join(Pooling)
        raise invalid_value(f"pooling must be {known}; got {shown(wanted)}", "pooling") from None


async def _encode(front: Front, body: EmbeddingsBody) -> list[list[int]]:
    """Token ids of every input, checked against the vocabulary and the context."""
    text, info = front.loaded_text(), front.info
    prompts = []
    for prompt in prompts_of(body.input, "input", MAX_INPUTS):
        if isinstance(prompt, str):
            prompt = await text.encode(
                prompt, info.max_model_len, add_special_tokens=True, param="input"
            )
        check_token_ids(prompt, info.vocab_size, "input")
        with_token_budget(POOLING_PARAMS, len(prompt), info.max_model_len, "input")
        prompts.append(prompt)
    return prompts


async def _pool_all(front: Front, requests: Sequence[Request]) -> list[bytes]:
    """The engine's embedding of each request, in their order; all or none."""
    pooled: list[bytes] = []
    for start in range(0, len(requests), NUM_AT_ONCE):
        pooled += await _pool(front, requests[start : start + NUM_AT_ONCE])
    return pooled


async def _pool(front: Front, requests: Sequence[Request]) -> list[bytes]:
    sink: Sink = asyncio.Queue()
    found: dict[str, bytes] = {}
    try:
        for request in requests:
            await front.engine.submit(request, sink)
        while len(found) < len(requests):
            item = await sink.get()
            if isinstance(item, Exception):
                raise item
            found[item.request_id] = _embedding_of(front, item)
    except RequestError as error:
        message = error.message.replace("prompt", "input", 1)
        raise type(error)(message, param="input", code=error.code) from error
    finally:
        for request in requests:
            front.engine.abort(request.request_id)
    return [found[request.request_id] for request in requests]


def _embedding_of(front: Front, output: Output) -> bytes:
    front.metrics.choice_finished(output.finish_reason or FinishReason.ERROR)
    if output.finish_reason is FinishReason.ERROR or output.embedding is None:
        front.metrics.request_failed(output.error_code)
        raise request_lost(output.error_code, output.error)
    return output.embedding


def _written(vector: NDArray[np.float32], is_base64: bool) -> object:
    if is_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
