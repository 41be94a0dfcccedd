"""Pinned prefixes over HTTP: computed as a request of a key's tenant, then kept for its prompts."""

from __future__ import annotations

import logging
from dataclasses import asdict

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.errors import PINS_FULL, RequestError
from hal.server.errors import ApiError, invalid_value
from hal.server.front import Front, PinnedPrefix, job_id
from hal.server.params import chat_messages, check_token_ids
from hal.server.schema import Body, ignored_fields, parse_body
from hal.server.stream import unless_disconnected
from hal.server.wire import json_response

_log = logging.getLogger("hal.server")


class PinBody(Body):
    """What the prompts of `key` start with: `prompt` as text or token ids, or `messages`."""

    key: str
    prompt: str | list[int] | None = None
    messages: list[dict[str, object]] | None = None


async def create_pin(front: Front, http: HttpRequest) -> Response:
    """Computes the prefix unless it is cached; its full blocks stay until the pin is deleted."""
    assert front.keys is not None
    body = parse_body(await http.body(), PinBody)
    if names := ignored_fields(body):
        raise invalid_value(f"unknown field {names[0][:64]!r}", names[0][:64])
    if body.key not in front.quotas:
        raise invalid_value(f"there is no key named {body.key[:64]!r}", "key")
    token_ids = await _encode(front, body)
    if not token_ids:
        raise invalid_value("the prompt is empty; there is nothing to pin", "prompt")
    name = front.engine.request_id(f"pin-{job_id(http)}")
    computed = front.compute(name, token_ids, body.key)
    await unless_disconnected(http.receive, computed)
    try:
        num_tokens = await front.engine.pin(name, token_ids, body.key)
    except RequestError as error:
        if error.code == PINS_FULL:
            raise ApiError(409, "pins_full", error.message) from error
        raise
    pin = front.pins[name] = PinnedPrefix(name, body.key, num_tokens)
    _log.info("pinned %d tokens for key %r as %s", num_tokens, body.key, name)
    return json_response(asdict(pin))


async def list_pins(front: Front, http: HttpRequest) -> Response:
    """Those made here; the engine may have lost one with a failed step that computed it."""
    return json_response({"pins": [asdict(pin) for pin in front.pins.values()]})


async def delete_pin(front: Front, http: HttpRequest) -> Response:
    """Its blocks stay cached as any others do."""
    name = http.path_params["name"]
    pin = front.pins.pop(name, None)
    try:
        if pin is None:
            raise RequestError(f"there is no pin named {name[:64]!r}")
        await front.engine.unpin(name)
    except RequestError as error:
        raise ApiError(404, "not_found", error.message) from error
    _log.info("unpinned %s of key %r", name, pin.key)
    return json_response({"name": name, "deleted": True})


async def _encode(front: Front, body: PinBody) -> list[int]:
    text, info = front.loaded_text(), front.info
    if (body.prompt is None) == (body.messages is None):
        raise invalid_value("give either prompt or messages", "prompt")
    if isinstance(body.prompt, list):
        check_token_ids(body.prompt, info.vocab_size, "prompt")
        return body.prompt
    if body.messages is not None:
        messages = chat_messages(body.messages)
        chat = await text.render(messages, add_generation_prompt=False, variables=None)
        return await text.encode_chat(chat, info.max_model_len)
    return await text.encode(
        body.prompt or "", info.max_model_len, add_special_tokens=True, param="prompt"
    )
