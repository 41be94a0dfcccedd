"""What /metrics and /hal/plan of a server say, and what lies between two scrapes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from hal.errors import ConfigError

PREFIXES = ("hal:", "vllm:")
"""Of the servers whose metrics are understood: the names behind them are the same."""
_TIMEOUT_S = 5.0
_MAX_BYTES = 2**24

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one moment, by name without prefix; at_s of this machine's monotonic clock."""

    at_s: float
    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """The sum over all label sets that have these labels; 0.0 for none."""
        wanted = set(labels.items())
        found = self.samples.get(name, {})
        return sum(value for key, value in found.items() if wanted <= key)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values of one label, each with its sum."""
        sums: dict[str, float] = {}
        for key, value in self.samples.get(name, {}).items():
            kind = dict(key).get(label)
            if kind is not None:
                sums[kind] = sums.get(kind, 0.0) + value
        return sums


@dataclass(frozen=True, slots=True)
class Window:
    """Two scrapes of one server; everything is what happened between them."""

    before: Scrape
    now: Scrape

    def rate(self, name: str, **labels: str) -> float:
        """Per second; a counter that fell is a server that started again."""
        seconds = self.now.at_s - self.before.at_s
        grown = self.now.total(name, **labels) - self.before.total(name, **labels)
        return max(grown, 0.0) / seconds if seconds > 0 else 0.0

    def grown(self, name: str) -> float:
        return max(self.now.total(name) - self.before.total(name), 0.0)

    def quantiles(self, name: str, shares: tuple[float, ...]) -> list[float] | None:
        """Of a histogram, interpolated in its buckets as Prometheus does; None without samples.

        What is above the last bound counts as that bound.
        """
        bounds = sorted(
            (float(bound), count) for bound, count in self.now.by(f"{name}_bucket", "le").items()
        )
        old = {float(b): n for b, n in self.before.by(f"{name}_bucket", "le").items()}
        buckets = [(bound, count - old.get(bound, 0.0)) for bound, count in bounds]
        if not buckets or buckets[-1][1] <= 0:
            return None
        return [_quantile(buckets, share) for share in shares]


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    rank = share * buckets[-1][1]
    low = below = 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == float("inf"):
                return low
            inside = (rank - below) / (count - below) if count > below else 1.0
            return low + (bound - low) * inside
        low, below = bound, count
    return low


class NoAnswer(ConfigError):
    """The server cannot be asked now; the message says why."""


class ServerReader:
    """Asks one server; knows no proxies."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def scrape(self) -> Scrape:
        """Raises NoAnswer."""
        return parse(self._get("/metrics").decode("utf-8", "replace"), time.monotonic())

    def plan(self) -> dict[str, object]:
        """{} where the server has none, or has not loaded yet."""
        try:
            value = json.loads(self._get("/hal/plan"))
        except (NoAnswer, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers=self._headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                body: bytes = answer.read(_MAX_BYTES)
        except urllib.error.HTTPError as error:
            hint = "; set HAL_API_KEY or --api-key" if error.code in (401, 403) else ""
            raise NoAnswer(f"{self.url}{path} answers {error.code}{hint}") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise NoAnswer(f"no answer from {self.url}: {reason}; is hal-serve running?") from error
        return body


def parse(text: str, at_s: float) -> Scrape:
    """Raises NoAnswer for what is not Prometheus' text format, or has no metric of ours."""
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                prefix = next((p for p in PREFIXES if sample.name.startswith(p)), None)
                if prefix is not None:
                    found = samples.setdefault(sample.name.removeprefix(prefix), {})
                    # The same server may emit both sets.
                    found.setdefault(frozenset(sample.labels.items()), sample.value)
    except ValueError as error:
        raise NoAnswer(f"/metrics is not in Prometheus' text format: {error}") from error
    if not samples:
        raise NoAnswer("/metrics has no metric with the prefix hal: or vllm:")
    return Scrape(at_s, samples)
