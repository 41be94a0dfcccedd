"""From a body's fields to GuidedDecodingParams: OpenAI's response_format and vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hal.errors import RequestError
from hal.guided_decoding import GuidedDecodingParams
from hal.server.errors import ApiError, invalid_value
from hal.server.schema import GenerateBody, shown

_KINDS = ("json", "regex", "choice", "grammar")
_STRUCTURED = frozenset({*_KINDS, "json_object", "whitespace_pattern"})


@dataclass(frozen=True, slots=True)
class Guided:
    """What guides an answer, and the field that asked for it."""

    params: GuidedDecodingParams
    field: str


def guided_of(body: GenerateBody) -> Guided | None:
    """None for free text. Raises ApiError 400 naming the field, also where two fields ask."""
    found = [
        guided
        for guided in (
            _response_format(body.response_format),
            _structured_outputs(body.structured_outputs),
            *(_guided_field(body, kind) for kind in _KINDS),
        )
        if guided is not None
    ]
    if len(found) > 1:
        fields = " and ".join(guided.field for guided in found)
        raise invalid_value(f"{fields} both say what the answer must be; send one", found[1].field)
    if not found and body.guided_whitespace_pattern is not None:
        raise invalid_value("guided_whitespace_pattern needs guided_json or a response_format")
    return found[0] if found else None


def under_its_name(error: RequestError, guided: Guided | None) -> RequestError:
    """The engine's error on guided decoding under the field that the client used."""
    if guided is not None and error.param == "guided_decoding":
        message = f"{guided.field}: {error.message}"
        return type(error)(message, param=guided.field, code=error.code)
    return error


def make_guided(field: str, **settings: object) -> Guided:
    """Raises RequestError under the name of the field."""
    try:
        return Guided(GuidedDecodingParams(**settings), field)  # type: ignore[arg-type]
    except RequestError as error:
        raise RequestError(f"{field}: {error.message}", param=field) from error


def _guided_field(body: GenerateBody, kind: str) -> Guided | None:
    field = f"guided_{kind}"
    value = getattr(body, field)
    if value is None:
        return None
    pattern = body.guided_whitespace_pattern
    return make_guided(field, **{kind: value}, whitespace_pattern=pattern)


def _structured_outputs(value: Mapping[str, object] | None) -> Guided | None:
    if value is None:
        return None
    field = "structured_outputs"
    unknown = sorted(value.keys() - _STRUCTURED)
    if unknown:
        known = ", ".join(sorted(_STRUCTURED))
        raise invalid_value(f"{field}.{unknown[0]} is not known; known are {known}", field)
    return make_guided(field, **value)


def _response_format(value: Mapping[str, object] | None) -> Guided | None:
    if value is None:
        return None
    field = "response_format"
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return make_guided(field, json_object=True)
        case "json_schema":
            return make_guided(field, json=_schema_in(value))
        case kind:
            raise invalid_value(
                f"{field}.type must be text, json_object or json_schema; got {shown(kind)}",
                f"{field}.type",
            )


def _schema_in(value: Mapping[str, object]) -> object:
    path = "response_format.json_schema"
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping):
        raise ApiError(400, "missing_required_parameter", f"{path} is required", param=path)
    schema = inner.get("schema")
    if schema is None:
        path += ".schema"
        raise ApiError(400, "missing_required_parameter", f"{path} is required", param=path)
    return schema
