"""CPU, memory and files of the front and of the engine process, side by side (Linux)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class ProcessMetrics(Collector):
    """Prometheus' usual process metrics with a label for which process.

    pids: of each process that runs now, read at each scrape
    """

    def __init__(
        self, prefix: str, labels: Mapping[str, str], pids: Callable[[], Mapping[str, int]]
    ) -> None:
        self._prefix = prefix
        self._labels = dict(labels)
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for process, pid in self._pids().items():
            labels = {**self._labels, "process": process}
            for found in _families_of(pid):
                name = self._prefix + found.name
                family = families.setdefault(name, Metric(name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(self._prefix + sample.name, labels, sample.value)
        return families.values()


def _families_of(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
