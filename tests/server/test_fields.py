"""The table of fields in the docs says what the parser does with each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from field_tables import GENERATING, state_of

from hal.server.errors import ApiError
from hal.server.schema import NO_OPS, UNSUPPORTED, Body, ignored_fields, parse_body

BASE: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "completions": {"prompt": "x"},
    "responses": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}]},
}
NAMES = {name for body in GENERATING.values() for name in body.model_fields}


@pytest.mark.parametrize("route", GENERATING)
@pytest.mark.parametrize("name", sorted(NAMES | NO_OPS | UNSUPPORTED.keys()))
def test_each_field_is_treated_as_the_table_says(route: str, name: str) -> None:
    kind = GENERATING[route]
    state = state_of(name, kind)
    if state.startswith("yes"):
        assert ignored_fields(parsed(kind, {**BASE[route], name: BASE[route].get(name)})) == []
    elif state.startswith("400"):
        with pytest.raises(ApiError) as caught:
            parsed(kind, {**BASE[route], name: {"what": "ever"}})
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)
        for value in (None, *UNSUPPORTED[name]):
            assert ignored_fields(parsed(kind, {**BASE[route], name: value})) == []
    else:
        ignored = ignored_fields(parsed(kind, {**BASE[route], name: "x"}))
        assert ignored == ([] if state == "no effect" else [name])


def parsed(kind: type[Body], value: dict[str, Any]) -> Body:
    return parse_body(json.dumps(value).encode(), kind)
