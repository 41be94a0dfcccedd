"""The OpenAPI document says what the route table and the bodies say."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from hal.server.admin import ADMIN_ROUTES
from hal.server.app import MISSING, ROUTES
from hal.server.limits import OPEN_PATHS
from hal.server.openapi import TAKES_BODY, openapi_document

DOCUMENT: Any = openapi_document((*ROUTES, *ADMIN_ROUTES), OPEN_PATHS, has_keys=True)


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


def test_an_error_looks_as_the_schema_says(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": 3})
    schema = {"$ref": "#/components/schemas/Error", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(answer.json())
