"""The routes. FastAPI dispatches; bodies are parsed by schema.py, errors leave in one shape."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp

import hal
from hal.server.admin import ADMIN_ROUTES, for_admins
from hal.server.anthropic import count_tokens, create_message
from hal.server.chat import create_chat_completion
from hal.server.chat_turn import encode_turn, render_turn
from hal.server.completions import create_completion
from hal.server.embeddings import create_embeddings
from hal.server.errors import (
    ApiError,
    internal_error,
    invalid_value,
    model_not_found,
    not_implemented,
)
from hal.server.front import Front, Handler, ignored_header
from hal.server.limits import OPEN_PATHS, ApiKeyCheck, HttpRecord, RequestLimits, RequestLog
from hal.server.metrics import CONTENT_TYPE
from hal.server.openapi import openapi_document
from hal.server.params import chat_messages, check_token_ids
from hal.server.responses import create_response
from hal.server.schema import ChatBody, DetokenizeBody, TokenizeBody, parse_body
from hal.server.static_page import page_routes
from hal.server.supervisor import EngineState
from hal.server.text import TextModel
from hal.server.wire import error_response, json_response


def build_app(front: Front) -> ASGIApp:
    """The whole HTTP side as one ASGI application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    page = page_routes() if front.has_page else ()
    known_paths = {path for _, path, _ in (*ROUTES, *ADMIN_ROUTES, *page)}
    for method, path, handler in (*ROUTES, *page):
        app.add_route(path, _endpoint(front, handler), methods=[method])
    for method, path, handler in ADMIN_ROUTES:
        app.add_route(path, _endpoint(front, for_admins(handler)), methods=[method])
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_exception_handler(Exception, _unexpected_error)
    open_paths = OPEN_PATHS | {path for _, path, _ in page}
    checked = RequestLimits(ApiKeyCheck(app, front.keys, front.quotas, open_paths))

    def observe(record: HttpRecord) -> None:
        front.metrics.http_answer(record, known_paths)
        if front.spans is not None:
            front.spans.request_ended(record)

    return RequestLog(checked, observe, lambda: front.is_leaving)


def _endpoint(front: Front, handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def endpoint(http: HttpRequest) -> Response:
        try:
            return await handler(front, http)
        except Exception as error:
            answer = front.refused(error)
            if answer.status == 500 and not isinstance(error, ApiError):
                raise  # logged with its traceback by the outermost layer
            return error_response(answer, http.scope)

    return endpoint


async def _routing_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = f"{http.method} is not allowed on {http.url.path}"
        headers = dict(error.headers or {})
        answer = ApiError(405, "method_not_allowed", message, headers=headers)
    else:
        answer = ApiError(404, "not_found", f"no such path: {http.url.path[:200]}")
    return error_response(answer, http.scope)


async def _unexpected_error(http: HttpRequest, error: Exception) -> Response:
    return error_response(internal_error(), http.scope)


async def live(front: Front, http: HttpRequest) -> Response:
    """The front answers; says nothing about the engine."""
    return json_response({"status": "alive"})


async def ready(front: Front, http: HttpRequest) -> Response:
    """200 when requests are served now; the engine is alive and idle or progressing."""
    state = "draining" if front.engine.is_draining else str(front.engine.process.state)
    if front.is_ready:
        return json_response({"status": "ready"})
    return json_response({"status": state}, {"retry-after": "1"}, status=503)


async def health(front: Front, http: HttpRequest) -> Response:
    """As /ready, but still 200 while the last requests are served before a stop."""
    state = front.engine.process.state
    if state is EngineState.READY and front.text is not None:
        return json_response({"status": "healthy"})
    return json_response({"status": str(state)}, {"retry-after": "1"}, status=503)


async def metrics(front: Front, http: HttpRequest) -> Response:
    """Prometheus text."""
    return Response(front.metrics.render(), headers={"content-type": CONTENT_TYPE})


async def show_openapi(front: Front, http: HttpRequest) -> Response:
    """This document."""
    document = _openapi(front.keys is not None)
    return Response(document, media_type="application/json")


@functools.cache
def _openapi(has_keys: bool) -> bytes:
    routes = [route for route in (*ROUTES, *ADMIN_ROUTES) if route[1] not in MISSING]
    return orjson.dumps(openapi_document(routes, has_keys=has_keys))


async def show_version(front: Front, http: HttpRequest) -> Response:
    """The version of hal."""
    return json_response({"version": hal.__version__})


async def show_plan(front: Front, http: HttpRequest) -> Response:
    """Which device and why, every resolved setting, every byte, every kernel with its reasons."""
    info = front.info
    limits = {
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "max_num_batched_tokens": info.max_num_batched_tokens,
        "num_blocks": info.num_blocks,
        "block_size": info.block_size,
    }
    explain = orjson.loads(info.explain_json)
    return json_response({"served_model_name": front.served_name, "limits": limits, **explain})


async def list_models(front: Front, http: HttpRequest) -> Response:
    """The served model, as a list of one."""
    return json_response({"object": "list", "data": [_model_card(front)]})


async def show_model(front: Front, http: HttpRequest) -> Response:
    """The served model."""
    name = http.path_params["name"]
    if name != front.served_name:
        raise model_not_found(name, front.served_name)
    return json_response(_model_card(front))


async def tokenize(front: Front, http: HttpRequest) -> Response:
    body = parse_body(await http.body(), TokenizeBody)
    front.check_model(body.model)
    text = front.loaded_text()
    if (body.prompt is None) == (body.messages is None):
        raise invalid_value("give either prompt or messages", "prompt")
    max_model_len = front.info.max_model_len
    token_ids = await _tokenized(text, body, max_model_len)
    strings = [text.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in token_ids]
    return json_response(
        {
            "count": len(token_ids),
            "max_model_len": max_model_len,
            "tokens": token_ids,
            "token_strs": strings if body.return_token_strs else None,
        },
        ignored_header(body),
    )


async def _tokenized(text: TextModel, body: TokenizeBody, max_model_len: int) -> list[int]:
    """A prompt as /v1/completions reads it, or a chat as /v1/chat/completions does."""
    if body.messages is None:
        add_special_tokens = body.add_special_tokens is not False
        return await text.encode(
            body.prompt or "", max_model_len, add_special_tokens=add_special_tokens, param="prompt"
        )
    chat = await text.render(
        chat_messages(body.messages),
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=None,
    )
    if not body.add_special_tokens:
        return await text.encode_chat(chat, max_model_len)
    return await text.encode(chat.text, max_model_len, add_special_tokens=True, param="messages")


async def detokenize(front: Front, http: HttpRequest) -> Response:
    body = parse_body(await http.body(), DetokenizeBody)
    front.check_model(body.model)
    text = front.loaded_text()
    check_token_ids(body.tokens, front.info.vocab_size, "tokens")
    prompt = text.tokenizer.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    return json_response({"prompt": prompt}, ignored_header(body))


def _model_card(front: Front) -> dict[str, object]:
    info = front.engine.process.info
    return {
        "id": front.served_name,
        "object": "model",
        "created": front.created,
        "owned_by": "hal",
        "max_model_len": None if info is None else info.max_model_len,
    }


async def render(front: Front, http: HttpRequest) -> Response:
    """The prompt that a chat becomes, nothing generated."""
    body = parse_body(await http.body(), ChatBody)
    front.check_model(body.model)
    prompt = await render_turn(front, body)
    encoded = await encode_turn(front, prompt)
    token_ids = list(encoded.token_ids[0])
    answer = {"prompt": prompt.text, "tokens": token_ids, "count": len(token_ids)}
    return json_response(answer, ignored_header(body))


def _missing(what: str) -> Handler:
    async def refuse(front: Front, http: HttpRequest) -> Response:
        raise not_implemented(what)

    return refuse


MISSING = {
    "/v1/rerank": "reranking: no model with a score head can be loaded",
    "/rerank": "reranking: no model with a score head can be loaded",
    "/v1/score": "scores: no model with a score head can be loaded",
    "/score": "scores: no model with a score head can be loaded",
    "/v1/load_lora_adapter": "LoRA adapters",
    "/v1/unload_lora_adapter": "LoRA adapters",
}
"""Routes that clients know and that answer 501."""

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/live", live),
    ("GET", "/ready", ready),
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
    ("GET", "/version", show_version),
    ("GET", "/openapi.json", show_openapi),
    ("GET", "/hal/plan", show_plan),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", show_model),
    ("POST", "/v1/completions", create_completion),
    ("POST", "/v1/chat/completions", create_chat_completion),
    ("POST", "/v1/responses", create_response),
    ("POST", "/v1/embeddings", create_embeddings),
    ("POST", "/v1/messages", create_message),
    ("POST", "/v1/messages/count_tokens", count_tokens),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("POST", "/render", render),
    *(("POST", path, _missing(what)) for path, what in MISSING.items()),
)
