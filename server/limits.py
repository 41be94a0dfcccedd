"""The outermost layers of the HTTP side: log and catch, limits, API key. Plain ASGI.

Nothing behind them sees a request that is too large, has a strange Host, or lacks the key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hal.server.errors import ApiError, api_error, internal_error, invalid_value
from hal.server.facts import RequestFacts, facts_of
from hal.server.keys import KeyRing
from hal.server.quotas import Quota
from hal.server.wire import error_answer, is_anthropic

MAX_BODY_BYTES = 32 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
MAX_HEADERS = 128
BODY_TIMEOUT_S = 60.0
OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
"""The only paths that need no API key, beside those of the page's files."""
PROBE_PATHS = OPEN_PATHS | {"/metrics"}

_DISCARD_TIMEOUT_S = 5.0
_HOST = re.compile(rb"([A-Za-z0-9]([A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_JSON_TYPE = re.compile(rb"application/json\s*(;\s*charset=\"?utf-?8\"?\s*)?", re.IGNORECASE)

access_log = logging.getLogger("hal.server.access")
error_log = logging.getLogger("hal.server")


@dataclass(frozen=True, slots=True)
class HttpRecord:
    """One answered request, for the log, the metrics and the spans.

    parent: the trace that it belongs to, as the W3C's headers say it
    """

    method: str
    path: str
    status: int
    seconds: float
    request_id: str
    facts: RequestFacts
    parent: Mapping[str, str]


class RequestLog:
    """Gives every request an id and one log line, and turns what nobody caught into a 500.

    is_leaving: whether an answer closes its connection, so that the next request finds another
    server behind the same address
    """

    def __init__(
        self,
        app: ASGIApp,
        observe: Callable[[HttpRecord], None],
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._observe = observe
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        scope["hal_request_id"] = request_id.decode("ascii")
        facts = facts_of(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id)]
                if is_anthropic(scope):
                    own.append((b"request-id", request_id))
                if self._is_leaving():
                    own.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # noqa: BLE001 the last place before the parser
            if not isinstance(error, ApiError):
                error_log.exception("request %s failed", scope["hal_request_id"])
            answer = error if isinstance(error, ApiError) else internal_error()
            if status == 0:
                await send_error(answer, scope, send_with_id)
            elif answer.status == 499:
                status, facts.error_code = 499, answer.code
        seconds = time.monotonic() - facts.started_at
        record = HttpRecord(
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=seconds,
            request_id=scope["hal_request_id"],
            facts=facts,
            parent=_trace_headers(scope),
        )
        self._observe(record)
        _log_access(record)


def _log_access(record: HttpRecord) -> None:
    """One line, the same whatever its text: programs read `hal` of it."""
    facts = record.facts.as_log()
    fields = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "total_ms": round(1000 * record.seconds, 2),
        **facts,
    }
    if trace := _TRACE_PARENT.fullmatch(record.parent.get("traceparent", "")):
        fields["trace_id"] = trace[1]
    # Probes and scrapes come every few seconds; their lines would bury the requests.
    access_log.log(
        logging.DEBUG if record.path in PROBE_PATHS else logging.INFO,
        "%s %s %r %d %.1f ms%s",
        record.request_id,
        record.method,
        record.path,
        record.status,
        1000 * record.seconds,
        "".join(f" {name}={value}" for name, value in facts.items()),
        extra={"hal": fields},
    )


class RequestLimits:
    """Refuses headers, hosts, content types and bodies that are not sane."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            _check_headers(scope)
            if scope["method"] not in ("GET", "HEAD", "OPTIONS", "DELETE"):  # no route reads one
                await self._check_body_headers(scope, receive)
        except ApiError as error:
            await send_error(error, scope, send)
            return
        await self._app(scope, _BoundedBody(receive, self._max_body_bytes).receive, send)

    async def _check_body_headers(self, scope: Scope, receive: Receive) -> None:
        length = _header(scope, b"content-length")
        if length is not None and int(length) > self._max_body_bytes:
            # A client that is still sending would see a reset instead of the answer.
            await _discard(receive, 2 * self._max_body_bytes)
            raise body_too_large(self._max_body_bytes)
        content_type = _header(scope, b"content-type") or b""
        if not _JSON_TYPE.fullmatch(content_type):
            shown = content_type[:50].decode("latin-1") or "none"
            raise ApiError(
                415,
                "unsupported_media_type",
                f"the body must be JSON: send Content-Type: application/json, not {shown}",
            )


class ApiKeyCheck:
    """Lets only requests with a known key through, except on open paths; without keys, everyone who
    asks for this machine by an address or as localhost: a page of another site can make a browser
    send requests here under that site's name (DNS rebinding).

    What is behind it finds the ApiKey, or None, as scope["hal_key"].
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        quotas: Mapping[str, Quota],
        open_paths: Container[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._keys = keys
        self._quotas = quotas
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope["hal_key"] = None if self._keys is None else self._keys.find(_key_text(scope))
        if key is not None:
            facts_of(scope).key = key.name
            await self._app(scope, receive, _with_quota(send, self._quotas[key.name]))
        elif self._keys is None and not _is_local(scope):
            await send_error(_foreign_host(), scope, send)
        elif self._keys is None or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
        else:
            await send_error(_wrong_key(), scope, send)


def _key_text(scope: Scope) -> bytes:
    """What the request gives as its key, b"" if nothing."""
    given = _header(scope, b"x-api-key")
    if given is not None:
        return given.strip()
    scheme, _, text = (_header(scope, b"authorization") or b"").partition(b" ")
    return text.strip() if scheme.lower() == b"bearer" else b""


def _is_local(scope: Scope) -> bool:
    """Whether the Host header, which is sane, is an address or localhost."""
    host = (_header(scope, b"host") or b"").decode("latin-1").lower()
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _foreign_host() -> ApiError:
    return invalid_value(
        "without API keys this server answers to localhost and to addresses only, not to the name "
        "in the Host header; use http://127.0.0.1, or start it with HAL_API_KEY"
    )


def _wrong_key() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "missing or wrong API key; send the header Authorization: Bearer KEY or x-api-key: KEY",
        "authentication_error",
        headers={"www-authenticate": "Bearer"},
    )


def _with_quota(send: Send, quota: Quota) -> Send:
    """Every answer tells what is left of the key's limits."""

    async def send_with_quota(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(k.encode("ascii"), v.encode("ascii")) for k, v in quota.headers().items()]
            message["headers"] = [*message.get("headers", ()), *own]
        await send(message)

    return send_with_quota


class _BoundedBody:
    """`receive` that counts bytes and time until the body is complete."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._is_complete = False
        self._deadline = time.monotonic() + BODY_TIMEOUT_S

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        try:
            remaining_s = self._deadline - time.monotonic()
            message = await asyncio.wait_for(self._receive(), remaining_s)
        except TimeoutError:
            raise ApiError(
                408,
                "request_timeout",
                f"the body did not arrive within {BODY_TIMEOUT_S:g} s",
            ) from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
            if self._num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
        return message


def body_too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, "request_too_large", f"the body is above the limit of {max_bytes} bytes; send less"
    )


async def send_error(error: Exception, scope: Scope, send: Send) -> None:
    """Answer with the one error shape of the API that was asked."""
    answer = error_answer(api_error(error), scope)
    headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in answer.headers.items()]
    length = b"%d" % len(answer.body)
    headers += [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _check_headers(scope: Scope) -> None:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    num_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or num_bytes > MAX_HEADER_BYTES:
        raise ApiError(
            431,
            "headers_too_large",
            f"{len(headers)} headers of {num_bytes} bytes; the limits are {MAX_HEADERS} headers "
            f"and {MAX_HEADER_BYTES} bytes",
        )
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise invalid_value("the Host header must be given once, as NAME or NAME:PORT")


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)


def _trace_headers(scope: Scope) -> dict[str, str]:
    found = ((name, _header(scope, name)) for name in (b"traceparent", b"tracestate"))
    return {n.decode(): value.decode("latin-1") for n, value in found if value is not None}


def _request_id(scope: Scope) -> bytes:
    given = _header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex.encode("ascii")


async def _discard(receive: Receive, max_bytes: int) -> None:
    num_bytes = 0
    try:
        async with asyncio.timeout(_DISCARD_TIMEOUT_S):
            while num_bytes < max_bytes:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
