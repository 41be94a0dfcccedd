"""The OpenAPI document says what the route table and the bodies say."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from asgi_calls import call, scope_of
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # has no types

from hal.server.admin import ADMIN_ROUTES
from hal.server.app import MISSING, ROUTES, build_app
from hal.server.async_engine import AsyncEngine
from hal.server.front import Front
from hal.server.limits import OPEN_PATHS
from hal.server.openapi import STATE_PATHS, TAKES_BODY, openapi_document
from hal.server.supervisor import EngineProcess

DOCUMENT: Any = openapi_document((*ROUTES, *ADMIN_ROUTES), has_keys=True)


def test_every_route_is_there_with_what_it_does() -> None:
    for method, path, _ in (*ROUTES, *ADMIN_ROUTES):
        if path in MISSING:
            continue
        operation = DOCUMENT["paths"][path.replace(":path}", "}")][method.lower()]
        assert operation["summary"], f"{path}: give its handler a docstring"
        assert ("security" in operation) == (path in OPEN_PATHS)
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert names == (["name"] if "{" in path else [])
    assert {path for _, path, _ in (*ROUTES, *ADMIN_ROUTES)} >= TAKES_BODY.keys()


def test_the_served_document_has_no_missing_routes_and_asks_for_no_key(http: httpx.Client) -> None:
    served = http.get("/openapi.json").json()
    assert served["security"] == []
    assert served["paths"].keys() & MISSING.keys() == set()
    assert served["paths"].keys() == DOCUMENT["paths"].keys() - MISSING.keys()


@pytest.mark.parametrize("path", TAKES_BODY)
def test_examples_fit_their_schemas_and_wrong_types_do_not(path: str) -> None:
    (operation,) = DOCUMENT["paths"][path].values()
    content = operation["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid(content["example"])
    body = TAKES_BODY[path].body
    name = "model" if "model" in body.model_fields else next(iter(body.model_fields))
    assert not validator.is_valid({**content["example"], name: 5})


@pytest.mark.parametrize("path", [path for path in TAKES_BODY if not path.startswith("/admin")])
def test_the_examples_are_accepted(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=TAKES_BODY[path].example).status_code == 200


@pytest.mark.parametrize("path", TAKES_BODY)
def test_errors_look_as_the_schema_says(http: httpx.Client, path: str) -> None:
    ((method, operation),) = DOCUMENT["paths"][path].items()
    answer = http.request(method, path, json=[])
    assert answer.status_code in (400, 403)
    content = operation["responses"]["default"]["content"]["application/json"]
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(answer.json())


@pytest.mark.parametrize("path", sorted(STATE_PATHS))
def test_a_server_that_loads_answers_with_its_state(path: str) -> None:
    front = Front(AsyncEngine(EngineProcess([])), "m")
    answer = asyncio.run(call(build_app(front), scope_of("GET", path)))
    content = DOCUMENT["paths"][path]["get"]["responses"]["503"]["content"]["application/json"]
    assert answer.status == 503
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(orjson.loads(answer.body))
