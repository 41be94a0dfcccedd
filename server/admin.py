"""Routes that change a running server. Each needs a key with the admin scope, on loopback too."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import asdict

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.env import LOG_LEVELS
from hal.errors import ConfigError
from hal.server.errors import ApiError, invalid_value
from hal.server.front import Front, Handler, caller_of
from hal.server.keys import LIMIT_NAMES, ApiKey, Scope, key_limits
from hal.server.pins import create_pin, delete_pin, list_pins
from hal.server.schema import Body, ignored_fields, parse_body
from hal.server.wire import json_response

_log = logging.getLogger("hal.server")


class LimitsBody(Body):
    """New limits of one key; what is left out stays, null lifts a limit."""

    key: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrency: int | None = None
    min_priority: int | None = None


class LogLevelBody(Body):
    """The least level that is logged."""

    level: str


def for_admins(handler: Handler) -> Handler:
    """The handler behind a check of the caller's scope."""

    async def checked(front: Front, http: HttpRequest) -> Response:
        key = caller_of(http)
        if key is None or Scope.ADMIN not in key.scopes:
            raise ApiError(
                403,
                "insufficient_scope",
                f"{http.url.path} needs a key with the scope {Scope.ADMIN} (hal-serve --api-keys)",
                "permission_error",
            )
        return await handler(front, http)

    return checked


async def list_keys(front: Front, http: HttpRequest) -> Response:
    """Every key with its scopes, limits and use; no text of a key is known here."""
    assert front.keys is not None
    return json_response({"keys": [_as_json(front, key) for key in front.keys.keys]})


async def change_limits(front: Front, http: HttpRequest) -> Response:
    """Takes effect at once, for requests that are not admitted yet, and until the server ends."""
    assert front.keys is not None
    body = parse_body(await http.body(), LimitsBody)
    _refuse_unknown(body)
    key = next((key for key in front.keys.keys if key.name == body.key), None)
    if key is None:
        raise invalid_value(f"there is no key named {body.key[:64]!r}", "key")
    quota = front.quotas[key.name]
    given = {name: getattr(body, name) for name in LIMIT_NAMES if name in body.model_fields_set}
    try:
        quota.set_limits(key_limits({**asdict(quota.limits), **given}, key.name))
    except ConfigError as error:
        raise invalid_value(error.message) from error
    _log.info("limits of key %r are now %s", key.name, quota.limits)
    return json_response(_as_json(front, key))


async def drain(front: Front, http: HttpRequest) -> Response:
    """As SIGTERM: new requests get 503, running ones end, the server exits with 0."""
    signal.raise_signal(signal.SIGTERM)
    return json_response({"status": "draining", "running": front.engine.num_inflight}, status=202)


async def list_requests(front: Front, http: HttpRequest) -> Response:
    """What is inside the engine, the oldest first; ids and counts, no text."""
    now = time.monotonic()
    shown = [
        {**asdict(one), "age_s": round(now - one.started_at, 3)} for one in front.engine.inflight()
    ]
    for fields in shown:
        del fields["started_at"]
    return json_response({"requests": shown})


async def set_log_level(front: Front, http: HttpRequest) -> Response:
    body = parse_body(await http.body(), LogLevelBody)
    _refuse_unknown(body)
    if body.level not in LOG_LEVELS:
        raise invalid_value(f"level must be one of {', '.join(LOG_LEVELS)}", "level")
    logging.getLogger("hal").setLevel(body.level.upper())
    return json_response({"level": body.level})


def _refuse_unknown(body: Body) -> None:
    if names := ignored_fields(body):
        raise invalid_value(f"unknown field {names[0][:64]!r}", names[0][:64])


def _as_json(front: Front, key: ApiKey) -> dict[str, object]:
    quota = front.quotas[key.name]
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "limits": asdict(quota.limits),
        "running": quota.num_running,
        "tokens_today": quota.use().tokens_today,
    }


ADMIN_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/admin/keys", list_keys),
    ("PATCH", "/admin/limits", change_limits),
    ("GET", "/admin/requests", list_requests),
    ("POST", "/admin/drain", drain),
    ("GET", "/admin/pins", list_pins),
    ("POST", "/admin/pins", create_pin),
    ("DELETE", "/admin/pins/{name}", delete_pin),
    ("PUT", "/admin/log-level", set_log_level),
)
