"""Reads PromQL well enough to find what would not run: syntax, arguments of functions, ranges.

Not an evaluator. Grafana's variables stand for what they are replaced by. Grammar: Prometheus'
documentation, "Querying basics", "Operators" and "Functions".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w:]))
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<range>\[(?:\d+(?:ms|[smhdwy]))+\]|\[\$__rate_interval\])
  | (?P<duration>(?:\d+(?:ms|[smhdwy]))+)
  | (?P<name>[a-zA-Z_:][\w:]*)
  | (?P<operator>==|!=|<=|>=|=~|!~|[-+*/%^<>=(){},])
)""",
    re.VERBOSE,
)
_PRECEDENCE = (
    ("or",),
    ("and", "unless"),
    ("==", "!=", "<=", ">=", "<", ">"),
    ("+", "-"),
    ("*", "/", "%"),
    ("^",),
)
_AGGREGATIONS = {"sum", "min", "max", "avg", "count", "stddev", "group"}
_OVER_RANGES = {"rate", "increase", "irate", "delta", "deriv", "min_over_time", "max_over_time"}


class Kind(StrEnum):
    """What an expression is."""

    SCALAR = "scalar"
    VECTOR = "instant vector"
    RANGE = "range vector"


class WrongQuery(Exception):
    """It would not run; the message says where and why."""


@dataclass
class Query:
    """metrics: names that are selected; grouped: labels that results are grouped by; filtered:
    (metric, label) that selectors name."""

    metrics: set[str] = field(default_factory=set)
    grouped: set[str] = field(default_factory=set)
    filtered: set[tuple[str, str]] = field(default_factory=set)


def read_query(text: str) -> Query:
    """Raises WrongQuery."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0
        self._query = Query()

    def read(self) -> Query:
        kind = self._binary(0)
        if self._at < len(self._tokens):
            raise self._wrong(f"unexpected {self._peek!r}")
        if kind is Kind.RANGE:
            raise self._wrong("the result is a range vector")
        return self._query

    @property
    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek
        self._at += 1
        return token

    def _take(self, wanted: str) -> None:
        if self._next() != wanted:
            raise self._wrong(f"{wanted!r} is missing")

    def _wrong(self, reason: str) -> WrongQuery:
        before = " ".join(self._tokens[: self._at])
        return WrongQuery(f"{reason} after {before[-60:]!r} in {self._text!r}")

    def _binary(self, level: int) -> Kind:
        if level == len(_PRECEDENCE):
            return self._unary()
        kind = self._binary(level + 1)
        while self._peek in _PRECEDENCE[level]:
            operator = self._next()
            right = self._binary(level + 1)
            if Kind.RANGE in (kind, right):
                raise self._wrong(f"{operator} on a range vector")
            if operator in ("and", "or", "unless") and Kind.SCALAR in (kind, right):
                raise self._wrong(f"{operator} on a scalar")
            kind = Kind.VECTOR if Kind.VECTOR in (kind, right) else Kind.SCALAR
        return kind

    def _unary(self) -> Kind:
        if self._peek in ("-", "+"):
            self._next()
        if self._peek == "(":
            self._next()
            kind = self._binary(0)
            self._take(")")
            return kind
        token = self._next()
        if re.fullmatch(r"\d.*", token):
            return Kind.SCALAR
        if not re.match(r"[a-zA-Z_:]", token):
            raise self._wrong(f"unexpected {token!r}")
        if token in _AGGREGATIONS:
            return self._aggregation()
        if self._peek == "(":
            return self._function(token)
        return self._selector(token)

    def _aggregation(self) -> Kind:
        if self._peek in ("by", "without"):
            self._next()
            self._take("(")
            while self._peek != ")":
                self._query.grouped.add(self._next())
                if self._peek == ",":
                    self._next()
            self._take(")")
        self._take("(")
        if self._binary(0) is not Kind.VECTOR:
            raise self._wrong("an aggregation takes an instant vector")
        self._take(")")
        return Kind.VECTOR

    def _function(self, name: str) -> Kind:
        self._take("(")
        kinds = [self._binary(0)]
        while self._peek == ",":
            self._next()
            kinds.append(self._binary(0))
        self._take(")")
        wanted = {
            "histogram_quantile": [Kind.SCALAR, Kind.VECTOR],
            "absent": [Kind.VECTOR],
            **{over: [Kind.RANGE] for over in _OVER_RANGES},
        }.get(name)
        if wanted is None:
            raise self._wrong(f"unknown function {name}")
        if kinds != wanted:
            raise self._wrong(f"{name} takes {wanted}; got {kinds}")
        return Kind.VECTOR

    def _selector(self, metric: str) -> Kind:
        self._query.metrics.add(metric)
        if self._peek == "{":
            self._next()
            while self._peek != "}":
                self._matcher(metric)
                if self._peek == ",":
                    self._next()
            self._take("}")
        is_range = self._peek.startswith("[")
        if is_range:
            self._next()
        if self._peek == "offset":
            self._next()
            if not re.fullmatch(r"(\d+(ms|[smhdwy]))+", self._next()):
                raise self._wrong("offset takes a duration")
        return Kind.RANGE if is_range else Kind.VECTOR

    def _matcher(self, metric: str) -> None:
        self._query.filtered.add((metric, self._next()))
        operator, value = self._next(), self._next()
        if operator not in ("=", "!=", "=~", "!~") or value[:1] not in "\"'":
            raise self._wrong(f"{operator} {value} is no matcher")
        if "~" in operator:
            try:
                re.compile(value[1:-1])
            except re.error as error:
                raise self._wrong(f"{value} is no regular expression: {error}") from error


def _tokens(text: str) -> Iterator[str]:
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise WrongQuery(f"{text[at : at + 20]!r} in {text!r} is no PromQL")
        yield match[0].strip()
        at = match.end()
