"""One shape for every error that leaves the server, and the table from our errors to HTTP."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from hal.errors import (
    NOT_FINITE,
    TOO_LATE,
    ContextLengthError,
    DeviceOutOfMemory,
    EngineError,
    GrammarError,
    HalError,
    RequestError,
    TokenizerError,
    UnsupportedError,
)

INVALID_REQUEST = "invalid_request_error"

_RETRY_JITTER = 0.25


@dataclass(slots=True, eq=False)
class ApiError(Exception):
    """An answer that is not 2xx; `code` is a string that never changes its meaning."""

    status: int
    code: str
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def to_json(self) -> bytes:
        return orjson.dumps(self.body())


def invalid_value(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)


def unsupported(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "unsupported_parameter", f"not supported yet: {message}", param=param)


def context_length_exceeded(message: str, param: str) -> ApiError:
    return ApiError(400, "context_length_exceeded", message, param=param)


def not_implemented(what: str) -> ApiError:
    return ApiError(501, "not_implemented", f"not supported yet: {what}", "server_error")


def invalid_schema(message: str, param: str | None) -> ApiError:
    return ApiError(400, "invalid_schema", message, param=param)


def model_not_found(name: str, served: str) -> ApiError:
    message = f"model {name[:100]!r} is not served here; the served model is {served!r}"
    return ApiError(404, "model_not_found", message, param="model")


def engine_loading() -> ApiError:
    return _unavailable("loading", "the model is still loading; GET /ready turns 200 when done", 2)


def draining() -> ApiError:
    return _unavailable("draining", "the server is shutting down; send this to another one", 5)


def jittered_s(wait_s: float) -> int:
    """Whole seconds for Retry-After: who was refused together comes back spread out."""
    return math.ceil(wait_s * (1 + random.uniform(0, _RETRY_JITTER)))


def overloaded(what: str, retry_after_s: int) -> ApiError:
    message = f"{what}; try again in {retry_after_s} s"
    return _unavailable("server_overloaded", message, retry_after_s)


def too_late(wait_s: float, timeout_s: float) -> ApiError:
    """Refused at once: the same fate after a wait would help nobody."""
    message = f"the queue needs about {wait_s:.1f} s; this request's timeout_s is {timeout_s:g}"
    headers = {"x-should-retry": "false"}
    return ApiError(504, "deadline_exceeded", message, "server_error", headers=headers)


def engine_unavailable(failure: HalError | None) -> ApiError:
    reason = failure.code if failure is not None else "unknown"
    return _unavailable("engine_unavailable", f"the engine has failed ({reason})", 5)


def circuit_open(num_failed: int, num_ends: int, wait_s: float) -> ApiError:
    """Whom the breaker keeps out; see hal.server.breaker."""
    retry_s = jittered_s(wait_s)
    message = (
        f"{num_failed} of the last {num_ends} requests failed in the engine; none is let in for "
        f"a while, try again in {retry_s} s"
    )
    return _unavailable("engine_unavailable", message, retry_s)


def _unavailable(code: str, message: str, retry_after_s: int) -> ApiError:
    headers = {"retry-after": str(retry_after_s)}
    return ApiError(503, code, message, "service_unavailable_error", headers=headers)


def internal_error() -> ApiError:
    """For bugs: what happened goes to the log, not to the client."""
    message = "internal error; the server's log has the details under this x-request-id"
    return ApiError(500, "internal_error", message, "server_error")


def request_lost(code: str | None, reason: str | None) -> ApiError:
    """The engine ended this request, `code` as in hal.errors; others go on."""
    if code == NOT_FINITE:
        message = f"{code}: the model produced logits that are not finite; other requests go on"
        return ApiError(500, "numerical_error", message, "server_error")
    if code == GrammarError.code:
        return invalid_schema(f"{code}: {reason}", "guided_decoding")
    if code == TOO_LATE:
        return ApiError(504, "deadline_exceeded", f"{code}: {reason}", "server_error")
    if code in (None, EngineError.code):  # a bug: what happened goes to the log
        reason = "the step of this request failed; the server's log has the reason"
    return ApiError(500, "step_failed", f"{code or EngineError.code}: {reason}", "server_error")


def api_error(error: Exception) -> ApiError:
    """The answer to any exception of a handler."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return context_length_exceeded(error.message, error.param or "prompt")
        case GrammarError():
            return invalid_schema(error.message, error.param)
        case RequestError():
            return invalid_value(error.message, error.param)
        case UnsupportedError():
            return ApiError(400, "unsupported_parameter", error.message)
        case TokenizerError():
            return invalid_value(error.message)
        case DeviceOutOfMemory() | EngineError():
            return engine_unavailable(error)
        case _:
            return internal_error()
