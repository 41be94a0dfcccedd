"""The outermost layers: sizes, hosts, types, keys, ids, and the last barrier for bugs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from asgi_calls import HOST, JSON, Answer, call, scope_of
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from hal.server import limits
from hal.server.admin import ADMIN_ROUTES
from hal.server.app import ROUTES, build_app
from hal.server.async_engine import AsyncEngine
from hal.server.errors import invalid_value
from hal.server.front import Front
from hal.server.keys import KeyRing, single_key
from hal.server.limits import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    OPEN_PATHS,
    HttpRecord,
    RequestLimits,
    RequestLog,
)
from hal.server.static_page import page_routes
from hal.server.supervisor import EngineProcess

KEY = "s3cret"


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body."""
    size = 0
    more = True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await Response(str(size))(scope, receive, send)


def ask(scope: Scope, body: tuple[bytes, ...] = (b"",), max_body_bytes: int = 100) -> Answer:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        await RequestLog(RequestLimits(reads_all, max_body_bytes), lambda record: None)(
            scope, receive, send
        )

    return asyncio.run(call(guarded, scope, body))


@pytest.mark.parametrize(
    "host", [b"localhost", b"127.0.0.1:80", b"[::1]:8000", b"my-host.example.com:1", b"a_b"]
)
def test_a_sane_host_passes(host: bytes) -> None:
    assert ask(scope_of("GET", "/", [(b"host", host)])).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [HOST, HOST],
        [(b"host", b"")],
        [(b"host", b"a/foo?x=")],
        [(b"host", b"a:b")],
        [(b"host", b"a b")],
        [(b"host", b"user@a")],
        [(b"host", b"x" * 300)],
    ],
)
def test_a_strange_host_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    answer = ask(scope_of("GET", "/", headers))
    assert (answer.status, answer.error["code"]) == (400, "invalid_value")
    assert "Host" in str(answer.error["message"])


def test_header_limits() -> None:
    most = [HOST] + [(b"x", b"1")] * (MAX_HEADERS - 1)
    assert ask(scope_of("GET", "/", most)).status == 200
    assert ask(scope_of("GET", "/", [*most, (b"x", b"1")])).error["code"] == "headers_too_large"
    name, value = HOST
    room = MAX_HEADER_BYTES - len(name) - len(value) - 1
    assert ask(scope_of("GET", "/", [HOST, (b"x", b"1" * room)])).status == 200
    assert ask(scope_of("GET", "/", [HOST, (b"x", b"1" * (room + 1))])).status == 431


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (b"application/json", 200),
        (b"Application/JSON; charset=utf-8", 200),
        (b'application/json; charset="UTF-8"', 200),
        (b"application/json; charset=latin-1", 415),
        (b"application/x-www-form-urlencoded", 415),
        (b"text/plain", 415),
        (b"", 415),
        (None, 415),
    ],
)
def test_content_type(content_type: bytes | None, status: int) -> None:
    headers = [HOST] if content_type is None else [HOST, (b"content-type", content_type)]
    answer = ask(scope_of("POST", "/", headers))
    assert answer.status == status
    if status == 415:
        assert answer.error["code"] == "unsupported_media_type"
        assert "application/json" in str(answer.error["message"])


def test_a_declared_body_that_is_too_large_is_not_read() -> None:
    headers = [HOST, JSON, (b"content-length", b"101")]
    answer = ask(scope_of("POST", "/", headers), (b"x" * 101,))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert "100" in str(answer.error["message"])


def test_a_chunked_body_is_counted() -> None:
    assert ask(scope_of("POST", "/"), (b"x" * 60, b"x" * 40)).body == b"100"
    answer = ask(scope_of("POST", "/"), (b"x" * 60, b"x" * 41))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_body_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.01)

    async def run() -> Answer:
        answer = Answer()

        async def receive() -> Message:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        async def send(message: Message) -> None:
            answer.messages.append(message)

        app = RequestLog(RequestLimits(reads_all), lambda record: None)
        await app(scope_of("POST", "/"), receive, send)
        return answer

    answer = asyncio.run(run())
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [(b"abc-1.2_3", True), (b"x" * 128, True), (b"x" * 129, False), (b"a b", False), (b"", False)],
)
def test_request_id(given: bytes, is_kept: bool) -> None:
    answer = ask(scope_of("GET", "/", [HOST, (b"x-request-id", given)]))
    found = answer.headers[b"x-request-id"]
    assert (found == given) == is_kept
    assert found


def test_an_unexpected_exception_tells_the_client_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret path /home/me")

    seen: list[HttpRecord] = []
    with caplog.at_level(logging.ERROR, "hal.server"):
        answer = asyncio.run(call(RequestLog(broken, seen.append), scope_of("GET", "/x")))
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "secret path" in caplog.text
    assert [(record.path, record.status) for record in seen] == [("/x", 500)]


def test_an_api_error_from_a_layer_keeps_its_status() -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        raise invalid_value("no", "field")

    answer = asyncio.run(call(RequestLog(refusing, lambda record: None), scope_of("GET", "/x")))
    assert (answer.status, answer.error["param"]) == (400, "field")


def keyed_front() -> Front:
    return Front(AsyncEngine(EngineProcess([])), "m", keys=KeyRing([single_key(KEY)]))


def paths() -> Iterator[str]:
    for _, path, _ in (*ROUTES, *ADMIN_ROUTES, *page_routes()):
        yield path.replace("{name:path}", "x")
    yield from (
        "/page",
        "/page/",
        "/page/index.html",
        "/nope",
        "/v1",
        "/metrics/",
        "//metrics",
        "/ready/",
        "/live/../metrics",
    )


@pytest.mark.parametrize("path", list(paths()))
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "PUT"])
def test_every_route_but_the_open_ones_needs_the_key(method: str, path: str) -> None:
    async def status(*headers: tuple[bytes, bytes]) -> int:
        app = build_app(keyed_front())
        return (await call(app, scope_of(method, path, [HOST, JSON, *headers]))).status

    async def run() -> tuple[int, int, int]:
        wrong = (b"authorization", b"Bearer wrong")
        right = (b"authorization", b"bearer " + KEY.encode())
        return await status(), await status(wrong), await status(right)

    without, wrong, right = asyncio.run(run())
    assert right != 401
    if path in OPEN_PATHS | {path for _, path, _ in page_routes()}:
        assert 401 not in (without, wrong)
    else:
        assert (without, wrong) == (401, 401)


@pytest.mark.parametrize(
    "value", [b"", b"Bearer", b"Bearer ", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer s3cre"]
)
def test_keys_that_are_not_the_key(value: bytes) -> None:
    async def run() -> Answer:
        app = build_app(keyed_front())
        headers = [HOST, (b"authorization", value)]
        return await call(app, scope_of("GET", "/v1/models", headers))

    answer = asyncio.run(run())
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.error["type"] == "authentication_error"
    assert answer.headers[b"www-authenticate"] == b"Bearer"


def test_the_body_is_not_read_before_the_key_is_checked() -> None:
    async def run() -> Answer:
        app = build_app(keyed_front())

        async def receive() -> Message:
            raise AssertionError("read")

        answer = Answer()

        async def send(message: Message) -> None:
            answer.messages.append(message)

        await app(scope_of("POST", "/v1/completions"), receive, send)
        return answer

    assert asyncio.run(run()).status == 401
