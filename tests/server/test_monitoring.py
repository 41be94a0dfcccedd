"""The files for Prometheus and Grafana: valid, and about metrics that a real server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # noqa: TID251 Prometheus reads YAML
from fake_serving import (
    ServerProcess,
    fake_arguments,
    rule,
    serving,
    write_byte_model,
    write_script,
)
from prometheus_client.parser import text_string_to_metric_families
from promql import WrongQuery, read_query

import hal.server

FOLDER = Path(hal.server.__path__[0]) / "monitoring"
PROMETHEUS_OWN = {"up": {"job", "instance"}}
EXPORTERS = {"DCGM_FI_DEV_GPU_UTIL": {"gpu"}}
"""What other programs export, as the file says."""

Known = dict[str, set[str]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Every sample of a server that has seen everything, with its labels."""
    folder = tmp_path_factory.mktemp("monitoring")
    script = write_script(folder / "script.json", [rule("nan", error_at=1)])
    with serving(fake_arguments(write_byte_model(folder / "model"), script)) as server:
        found = samples_after_traffic(server.wait_ready())
    return {**found, **PROMETHEUS_OWN, **EXPORTERS}


def samples_after_traffic(server: ServerProcess) -> Known:
    for prompt in ("abc", "nan", ""):
        httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 3})
    found: Known = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        # A counter or gauge with labels that nothing has happened to has no sample yet.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.setdefault(name, set()).add("model_name")
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    for name, label in (
        ("hal:requests_aborted_total", "cause"),
        ("hal:kernel_sites", "level"),
        ("hal:memory_bytes", "part"),
    ):
        assert name in found
        found[name].add(label)
    return found


def rules() -> list[dict[str, object]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, object]:
    found = json.loads((FOLDER / "dashboard.json").read_text())
    assert isinstance(found, dict)
    return found


def panel_queries() -> Iterator[str]:
    panels = dashboard()["panels"]
    assert isinstance(panels, list)
    yield from (target["expr"] for panel in panels for target in panel["targets"])


def check(query: str, known: Known) -> None:
    read = read_query(query)
    assert read.metrics <= known.keys(), query
    labels = set().union(*(known[name] for name in read.metrics))
    assert read.grouped <= labels, query
    for metric, label in read.filtered:
        assert label in known[metric], query


def test_alerts_ask_for_what_exists(known: Known) -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for one in rules():
        check(str(one["expr"]), known)
        assert isinstance(one["labels"], dict) and isinstance(one["annotations"], dict)
        assert one["labels"]["severity"] in ("info", "warning", "critical")
        assert one["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize(
    ("alert", "threshold", "lasts"),
    [
        ("HalHighTimeToFirstToken", "> 2", "5m"),
        ("HalHighInterTokenLatency", "> 0.1", "5m"),
        ("HalLongQueue", "> 100", "1m"),
        ("HalKvCacheNearlyFull", "> 0.9", "3m"),
        ("HalErrors", "> 0.01", "5m"),
        ("HalLowThroughput", "0.5 *", "10m"),
        ("HalLowPrefixHitRate", "< 0.5", "15m"),
        ("HalGpuSaturated", "> 95", "5m"),
        ("HalOutOfMemory", "> 0", None),
    ],
)
def test_thresholds(alert: str, threshold: str, lasts: str | None) -> None:
    (found,) = [one for one in rules() if one["alert"] == alert]
    assert threshold in str(found["expr"]) and found.get("for") == lasts


def test_panels_ask_for_what_exists(known: Known) -> None:
    queries = list(panel_queries())
    assert len(queries) > 25
    for query in queries:
        check(query, known)


def test_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert isinstance(panels, list)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_prometheus_reads_the_rules_beside_it() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert all((FOLDER / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "hal" and job["metrics_path"] == "/metrics"


@pytest.mark.parametrize(
    "query",
    [
        "rate(x)",
        "x[5m]",
        "sum by (a (x)",
        "sum(x[5m])",
        "histogram_quantile(x, 0.9)",
        "rate(x[5])",
        "x{a=b}",
        "x and 3",
        "median(x)",
        "x > ",
        "x y",
        'x{a=~"["}',
    ],
)
def test_wrong_queries_are_found(query: str) -> None:
    with pytest.raises(WrongQuery):
        read_query(query)


def test_the_page_names_every_metric(known: Known) -> None:
    page = Path(__file__).parent.parent.parent / "docs/observability.md"
    text = page.read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z0-9_]+)[`{]", text))
    for name in known:
        if name.startswith("hal:") and not name.endswith("_created"):
            short = re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("hal:"))
            assert short in documented, name


def test_the_page_names_every_alert() -> None:
    page = Path(__file__).parent.parent.parent / "docs/observability.md"
    named = set(re.findall(r"`(Hal[A-Za-z]+)`", page.read_text(encoding="utf-8")))
    assert named == {str(one["alert"]) for one in rules()}
