"""The page's files: how they are sent, to whom, and what must never be written in them."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from importlib.resources import files

import httpx
import pytest
from asgi_calls import HOST, Answer, call, scope_of

from hal.cli.serve import parse_options
from hal.server.app import build_app
from hal.server.async_engine import AsyncEngine
from hal.server.front import Front
from hal.server.keys import KeyRing, single_key
from hal.server.static_page import FOLDER, page_routes
from hal.server.supervisor import EngineProcess

MAX_PAGE_BYTES = 60_000
MAX_DOCS_BYTES = 8_000
PAGE = files("hal.server").joinpath(FOLDER)
PATHS = [path for _, path, _ in page_routes()]
SCRIPTS = sorted(item.name for item in PAGE.iterdir() if item.name.endswith(".js"))


def ask(
    path: str, *headers: tuple[bytes, bytes], method: str = "GET", key: str = "", page: bool = True
) -> Answer:
    keys = KeyRing([single_key(key)]) if key else None
    front = Front(AsyncEngine(EngineProcess([])), "m", keys=keys, has_page=page)
    return asyncio.run(call(build_app(front), scope_of(method, path, [HOST, *headers])))


@pytest.mark.parametrize("path", PATHS)
def test_every_file_has_its_type_and_policy(path: str) -> None:
    answer = ask(path)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    kind = kinds.get(path.rpartition(".")[2], "text/html")
    assert answer.status == 200
    assert answer.headers[b"content-type"].decode().startswith(kind)
    assert answer.headers[b"x-content-type-options"] == b"nosniff"
    assert answer.headers[b"referrer-policy"] == b"no-referrer"
    policy = dict(
        part.strip().split(" ", 1)
        for part in answer.headers[b"content-security-policy"].decode().split(";")
    )
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("default-src") == policy["frame-ancestors"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    first = ask("/page/app.js")
    etag = first.headers[b"etag"]
    for value in (etag, b'"other", W/' + etag, b"*"):
        again = ask("/page/app.js", (b"if-none-match", value))
        assert (again.status, again.body, again.headers[b"etag"]) == (304, b"", etag)
    assert ask("/page/app.js", (b"if-none-match", b'"other"')).body == first.body
    assert len({ask(path).headers[b"etag"] for path in PATHS}) == len(PATHS)


def test_the_files_need_no_key_and_what_they_show_does() -> None:
    assert {ask(path, key="secret").status for path in PATHS} == {200}
    for path in ("/metrics", "/hal/plan", "/v1/models", "/page", "/page/", "/page/nope.js"):
        assert ask(path, key="secret").status == 401, path


def test_only_the_files_are_served() -> None:
    for path in ("/page/", "/page/nope.js", "/page/docs.html", "/page/../app.py", "/index.html"):
        assert ask(path).status == 404, path
    assert ask("/page/app.js", method="POST").status in (405, 415)


def test_no_page() -> None:
    assert {ask(path, page=False).status for path in PATHS} == {404}
    assert ask("/", key="secret", page=False).status == 401
    assert parse_options([], {}).has_page
    assert not parse_options(["--no-page"], {}).has_page
    assert not parse_options([], {"HAL_NO_PAGE": "1"}).has_page


def test_head_has_no_body(http: httpx.Client) -> None:
    answer = http.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(http.get("/").content)


def test_the_whole_page_is_small() -> None:
    sizes = {item.name: len(item.read_bytes()) for item in PAGE.iterdir()}
    docs = sum(sizes.pop(f"docs.{kind}") for kind in ("html", "js", "css"))
    assert sum(sizes.values()) < MAX_PAGE_BYTES and docs < MAX_DOCS_BYTES


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.inline += data


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_a_document_has_nothing_inline_and_nothing_from_elsewhere(name: str) -> None:
    elements = _Elements()
    elements.feed(PAGE.joinpath(name).read_text())
    assert elements.inline.strip() == ""
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            known = value.startswith(("#", "./#")) or f"/{value}" in (*PATHS, "/openapi.json")
            assert known, value


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_and_load_nothing_from_elsewhere(name: str) -> None:
    text = PAGE.joinpath(name).read_text()
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|srcdoc|"
        r"\beval\(|new Function|DOMParser|javascript:|cssText"
    )
    assert re.findall(forbidden, text) == []
    # SVG's name is an address that nobody asks.
    assert set(re.findall(r"https?://[^\"'`\s]+", text)) <= {"http://www.w3.org/2000/svg"}
    for imported in re.findall(r"from \"([^\"]+)\"", text):
        assert imported.startswith("./") and f"/{FOLDER}/{imported[2:]}" in PATHS
