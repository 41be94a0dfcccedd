"""The page at `/`, and `/docs`: a fixed set of files, read once, each under a path of its own.

Nothing in them is secret and the browser sends no key with them, so they need none; what they show
comes from routes that do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from types import MappingProxyType

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.server.front import Front, Handler

FOLDER = "page"
_TYPES = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)
# Only our own files run, nothing is inline, and no text can become markup (trusted types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = MappingProxyType(
    {
        # Asked for every time, answered with 304: files of two versions never meet.
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent."""

    body: bytes
    headers: Mapping[str, str]

    @classmethod
    def of(cls, name: str, body: bytes) -> PageFile:
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        kind = _TYPES[name.rpartition(".")[2]]
        return cls(body, {"content-type": kind, "etag": etag, **_HEADERS})


def page_routes() -> tuple[tuple[str, str, Handler], ...]:
    """A route for each file of the folder; the documents are `/` and `/docs`."""
    found = {
        item.name: PageFile.of(item.name, item.read_bytes())
        for item in files(__package__).joinpath(FOLDER).iterdir()
    }
    paths = {"/": found.pop("index.html"), "/docs": found.pop("docs.html")} | {
        f"/{FOLDER}/{name}": file for name, file in sorted(found.items())
    }
    return tuple(("GET", path, partial(_send, file)) for path, file in paths.items())


async def _send(file: PageFile, front: Front, http: HttpRequest) -> Response:
    if _is_known(http.headers.get("if-none-match", ""), file.headers["etag"]):
        return Response(status_code=304, headers=dict(file.headers))
    return Response(file.body, headers=dict(file.headers))


def _is_known(asked: str, etag: str) -> bool:
    """Whether the browser has this version; proxies that compress mark the tag as weak."""
    tags = {tag.strip().removeprefix("W/") for tag in asked.split(",")}
    return etag in tags or "*" in tags
