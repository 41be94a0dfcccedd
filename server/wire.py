"""JSON on the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import orjson
from starlette.responses import Response

from hal.server.errors import ApiError

LOWEST_LOGPROB = -9999.0
"""What -inf is written as; JSON has no infinity."""


def json_response(
    value: object, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    return Response(orjson.dumps(value), status, dict(headers or {}), media_type="application/json")


def error_response(error: ApiError) -> Response:
    return Response(
        error.to_json(), error.status, dict(error.headers), media_type="application/json"
    )


def finite(logprob: float) -> float:
    """NaN never gets here: the engine ends such a row with an error."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB
