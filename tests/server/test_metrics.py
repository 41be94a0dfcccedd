"""Counts are exact, names are those of vLLM's dashboards, labels cannot grow without bound."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fake_serving import (
    MODEL_NAME,
    ServerProcess,
    fake_arguments,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)
from prometheus_client.parser import text_string_to_metric_families

from hal.server.admin import ADMIN_ROUTES
from hal.server.app import ROUTES


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    model = write_byte_model(folder / "model")
    script = write_script(folder / "script.json", [rule("nan", error_at=1)])
    with serving(fake_arguments(model, script)) as process:
        yield process.wait_ready()


def test_counts_are_exact(fresh_server: ServerProcess) -> None:
    server = fresh_server
    with httpx.Client(base_url=server.url, verify=False) as http:
        for i in range(10):
            stream = {"stream": True} if i % 2 else {}
            http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 2, **stream})
        http.post("/v1/completions", json={"prompt": "abc", "n": 2})
        http.post("/v1/completions", json={"prompt": "nan"})
        http.post("/v1/completions", json={"prompt": ""})
        http.get("/made/up/1")
        http.get("/made/up/2")
    wait_for(lambda: server.metric("num_requests_running") == 0, server)
    wait_for(lambda: server.metric("generation_tokens_total") == 10 * 2 + 2 * 4, server)
    expected = {
        ("prompt_tokens_total", ""): 10 * 3 + 3 + 3,
        ("request_success_total", 'finished_reason="length"'): 10,
        ("request_success_total", 'finished_reason="stop"'): 2,
        ("request_success_total", 'finished_reason="error"'): 1,
        ("requests_rejected_total", 'reason="invalid_value"'): 1,
        ("requests_rejected_total", 'reason="numerical_error"'): 1,
        ("time_to_first_token_seconds_count", ""): 12,
        ("inter_token_latency_seconds_count", ""): 10 + 2 * 3,
        ("e2e_request_latency_seconds_count", ""): 11,
        ("request_prompt_tokens_sum", ""): 33,
        ("request_generation_tokens_sum", ""): 28,
        ("http_requests_total", 'handler="other"'): 2,
        ("http_requests_total", 'handler="/v1/completions",method="POST",'): 11,
    }
    assert samples(server, expected) == expected


def test_a_scrape_parses_and_is_complete(fresh_server: ServerProcess) -> None:
    answer = fresh_server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert all(name.startswith("hal:") for name in families)
    assert {
        "hal:num_requests_running",
        "hal:num_requests_waiting",
        "hal:kv_cache_usage_perc",
        "hal:kv_blocks",
        "hal:cache_config_info",
        "hal:prefix_cache_queries",
        "hal:prefix_cache_hits",
        "hal:prefix_cache_evictions",
        "hal:num_preemptions",
        "hal:swapped_blocks",
        "hal:cpu_cache_usage_perc",
        "hal:engine_heartbeat_age_seconds",
    } <= families.keys()
    for family in families.values():
        for sample in family.samples:
            assert sample.labels["model_name"] == MODEL_NAME


def samples(
    server: ServerProcess, wanted: dict[tuple[str, str], int]
) -> dict[tuple[str, str], float]:
    """The first sample of each (name, piece of its labels)."""
    lines = server.get("/metrics").text.splitlines()
    return {
        (name, label): next(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"hal:{name}{{") and label in line
        )
        for name, label in wanted
    }


def test_every_route_is_counted_by_its_own_path(fresh_server: ServerProcess) -> None:
    paths = [path for _, path, _ in (*ROUTES, *ADMIN_ROUTES) if "{" not in path]
    for path in [*paths, "/nope"]:
        fresh_server.get(path)
    for path in paths:
        assert fresh_server.metric("http_requests_total", handler=path) >= 1, path
    assert fresh_server.metric("http_requests_total", handler="/nope") == 0
