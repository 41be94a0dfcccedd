"""The same samples once more under vLLM's names, for dashboards and alerts made for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from hal.errors import NOT_FINITE
from hal.server.metric_names import OLDER, OURS, RENAMED_LABELS, SAME, THEIRS


class WithTheirNames(Collector):
    """Every family of another collector, and behind it what vLLM calls it."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        for family in self._source.collect():
            yield family
            yield from _theirs(family)


def _theirs(family: Metric) -> Iterator[Metric]:
    name = family.name.removeprefix(OURS)
    if name in SAME:
        yield _renamed(family, THEIRS + name)
    if name in OLDER:
        yield _renamed(family, THEIRS + OLDER[name])
    if name == "request_errors":
        yield _corrupted(family)


def _renamed(family: Metric, name: str) -> Metric:
    renamed = Metric(name, family.documentation, family.type, family.unit)
    renamed.samples = [
        Sample(
            name + sample.name.removeprefix(family.name),
            {RENAMED_LABELS.get(label, label): value for label, value in sample.labels.items()},
            sample.value,
        )
        for sample in family.samples
    ]
    return renamed


def _corrupted(errors: Metric) -> Metric:
    """Requests whose logits were not finite."""
    label = "model_name"
    family = CounterMetricFamily(THEIRS + "corrupted_requests", "Not finite logits", labels=[label])
    for sample in errors.samples:
        if sample.name.endswith("_total") and sample.labels["code"] == NOT_FINITE:
            family.add_metric([sample.labels[label]], sample.value)
    return family
