"""JSON on the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from starlette.responses import Response
from starlette.types import Scope

from hal.server.errors import ApiError
from hal.server.facts import facts_of

LOWEST_LOGPROB = -9999.0
"""What -inf is written as; JSON has no infinity."""


def json_response(
    value: object, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    return Response(orjson.dumps(value), status, dict(headers or {}), media_type="application/json")


ANTHROPIC_PATH = "/v1/messages"
"""It and what is below it answers errors in Anthropic's shape."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OVERLOADED = 529
"""What Anthropic's clients take for 503."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as it leaves the server, in the shape of the API that was asked."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def error_answer(error: ApiError, scope: Scope) -> ErrorAnswer:
    facts_of(scope).error_code = error.code
    if not is_anthropic(scope):
        return ErrorAnswer(error.status, error.headers, error.to_json())
    status = _OVERLOADED if error.status == 503 else error.status
    body = orjson.dumps(anthropic_error(error, scope["hal_request_id"]))
    return ErrorAnswer(status, error.headers, body)


def is_anthropic(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def anthropic_error(error: ApiError, request_id: str) -> dict[str, object]:
    default = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, default)
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": request_id,
    }


def error_response(error: ApiError, scope: Scope) -> Response:
    answer = error_answer(error, scope)
    return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")


def finite(logprob: float) -> float:
    """NaN never gets here: the engine ends such a row with an error."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
