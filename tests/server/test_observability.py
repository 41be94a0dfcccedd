"""What a server tells about itself, told exactly and without a word of anybody's text."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from fake_serving import (
    MODEL_NAME,
    ServerProcess,
    fake_arguments,
    ids,
    open_request,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)
from prometheus_client.parser import text_string_to_metric_families

from hal.cli.serve import main
from hal.engine.request import EngineStats
from hal.server.facts import RequestFacts
from hal.server.loop_lag import LoopLag
from hal.server.metric_names import OLDER, SAME
from hal.server.stats_line import TEXT, Snapshot, between

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

CANARY = "CANARY-5f1c"
STEP_S = 0.01
STOCK_DASHBOARD = (
    *("vllm:e2e_request_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_sum"),
    *("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    *("vllm:inter_token_latency_seconds_bucket", "vllm:time_per_output_token_seconds_bucket"),
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    *("vllm:time_to_first_token_seconds_bucket", "vllm:request_success_total"),
    *("vllm:request_prompt_tokens_bucket", "vllm:request_generation_tokens_bucket"),
    *("vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum"),
    *("vllm:request_decode_time_seconds_sum", "vllm:request_max_num_generation_tokens_sum"),
)
"""What the dashboards in vLLM's repository ask for."""


class Server:
    """A real server that tells everything it can, to this test."""

    def __init__(self, process: ServerProcess, collector: Collector) -> None:
        self.process = process
        self.collector = collector

    def complete(self, prompt: str, headers: dict[str, str] | None = None, **more: object) -> int:
        body = {"prompt": prompt, **more}
        answer = httpx.post(f"{self.process.url}/v1/completions", json=body, headers=headers)
        return answer.status_code

    def samples(self) -> dict[str, float]:
        """By name and labels, without that of the model."""
        families = text_string_to_metric_families(self.process.get("/metrics").text)
        found: dict[str, float] = {}
        for family in families:
            for sample in family.samples:
                assert sample.labels["model_name"] == MODEL_NAME
                labels = [f"{k}={v}" for k, v in sample.labels.items() if k != "model_name"]
                key = " ".join([sample.name, *sorted(labels)])
                assert key not in found, key
                found[key] = sample.value
        return found

    def log(self, request_id: str) -> dict[str, object]:
        """The access line of a request; all lines of a logger are JSON."""
        line = self.process.line(request_id, self.process.error_lines)
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


@dataclass
class Collector:
    """What an OTLP collector was sent, as it arrived."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receive) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        collector.url = f"http://127.0.0.1:{http.server_port}/v1/traces"
        yield collector
        http.shutdown()
        thread.join()


def has_otel() -> bool:
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401  only asked for
    except ImportError:
        return False
    return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("observed")
    rules = [
        rule("nan", error_at=3),
        rule("slow", tokens=ids("x" * 400), step_delay_s=STEP_S),
    ]
    script = write_script(folder / "script.json", rules)
    arguments = fake_arguments(write_byte_model(folder / "model"), script)
    arguments += ["--metrics-compat", "vllm", "--log-format", "json", "--log-level", "debug"]
    with collecting() as collector:
        if has_otel():
            arguments += ["--otlp-endpoint", collector.url]
        with serving(arguments, OTEL_BSP_SCHEDULE_DELAY="50") as process:
            yield Server(process.wait_ready(), collector)


def test_vllms_names_have_the_same_values(server: Server) -> None:
    for i in range(6):
        assert server.complete(f"abc{i}", max_tokens=3, n=1 + i % 2) == 200
    assert server.complete("a nan", max_tokens=8) == 500
    wait_for(lambda: server.process.metric("num_requests_running") == 0, server.process)
    found = server.samples()
    for name in (*STOCK_DASHBOARD, "vllm:gpu_cache_usage_perc"):
        assert any(key.split(" ")[0] == name for key in found), name
    theirs = {key for key in found if key.startswith("vllm:")}
    for key in theirs - {"vllm:corrupted_requests_total"}:
        if key.startswith("vllm:cache_config_info"):
            assert found[key] == 1 and "num_gpu_blocks=256" in key
            continue
        name, _, labels = key.removeprefix("vllm:").partition(" ")
        for new, old in OLDER.items():
            name = name.replace(old, new)
        assert found[key] == found[f"hal:{name} {labels}".strip()], key
    families = {key.split(" ")[0].removeprefix("vllm:").split("_bucket")[0] for key in theirs}
    for name in SAME:
        assert any(family.startswith(name) for family in families), name


def test_phases_and_errors_are_counted(server: Server) -> None:
    before = server.samples()
    assert server.complete("slow", max_tokens=4, n=2) == 200
    assert server.complete("the nan", max_tokens=8) == 500
    after = server.samples()

    def grown(key: str) -> float:
        return after[key] - before[key]

    for name in ("queue", "prefill", "decode", "inference"):
        assert grown(f"hal:request_{name}_time_seconds_count") == 1
    # The first token comes behind the first of four steps, the last one behind all of them.
    assert grown("hal:request_prefill_time_seconds_sum") >= STEP_S
    inference = grown("hal:request_inference_time_seconds_sum")
    parts = [grown(f"hal:request_{name}_time_seconds_sum") for name in ("prefill", "decode")]
    assert inference == pytest.approx(sum(parts))
    assert inference + grown("hal:request_queue_time_seconds_sum") >= 4 * STEP_S
    assert grown("hal:request_params_n_sum") == 2
    assert grown("hal:request_params_max_tokens_sum") == 4
    assert grown("hal:request_max_num_generation_tokens_sum") == 4
    assert grown("hal:request_errors_total code=HAL-E610") == 1
    assert grown("vllm:corrupted_requests_total") == 1
    assert grown("hal:request_errors_total code=HAL-E310") == 0


def test_both_processes_are_measured(server: Server) -> None:
    found = server.samples()
    for process in ("front", "engine"):
        assert found[f"hal:process_resident_memory_bytes process={process}"] > 2**20
        assert found[f"hal:process_cpu_seconds_total process={process}"] > 0
        assert found[f"hal:process_open_fds process={process}"] > 3
    starts = [found[f"hal:process_start_time_seconds process={p}"] for p in ("front", "engine")]
    assert starts == sorted(starts)  # the front starts the engine
    assert found["hal:event_loop_lag_seconds"] >= 0


def test_log_lines_are_json_without_text(server: Server) -> None:
    headers = {"x-request-id": "log-1"}
    assert server.complete(CANARY, headers, max_tokens=2, stop=["STOP" + CANARY]) == 200
    access = server.log("log-1")
    ttft_ms, total_ms = access.pop("ttft_ms"), access.pop("total_ms")
    assert isinstance(ttft_ms, float) and isinstance(total_ms, float)
    assert 0 < ttft_ms <= total_ms
    for name in ("time", "queue_ms"):
        access.pop(name)
    assert access == {
        "level": "info",
        "logger": "hal.server.access",
        "request_id": "log-1",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "operation": "text_completion",
        "finish_reasons": ["length"],
        "prompt_tokens": len(CANARY),
        "cached_tokens": 0,
        "completion_tokens": 2,
    }
    headers = {"x-request-id": "log-2"}
    headers["traceparent"] = f"00-{'ab' * 16}-{'cd' * 8}-01"
    assert server.complete(CANARY, headers, max_tokens="2", stop=CANARY) == 400
    assert server.log("log-2")["trace_id"] == "ab" * 16
    assert (server.log("log-2")["status"], server.log("log-2")["error"]) == (400, "invalid_value")
    assert server.complete("nan" + CANARY, {"x-request-id": "log-3"}, stream=True) == 200
    third = server.log("log-3")
    assert (third["stream"], third["error"]) == (True, "numerical_error")
    httpx.get(f"{server.process.url}/{CANARY}%0A{{", headers={"x-request-id": "log-4"})
    lines = [line for line in server.process.error_lines if line.startswith("{")]
    assert all(isinstance(json.loads(line), dict) for line in lines)
    texts = [line for line in server.process.error_lines if CANARY in line]
    assert all(json.loads(line)["request_id"] == "log-4" for line in texts)  # a path, not a text


def test_a_dump_tells_what_runs(server: Server) -> None:
    process = server.process
    body: dict[str, object] = {"prompt": "slow " + CANARY, "max_tokens": 300, "n": 2}
    with open_request(process, "/v1/completions", body):
        wait_for(lambda: process.metric("num_requests_running") == 1, process)
        start = len(process.error_lines)
        process.signal(signal.SIGUSR1)
        process.line("hal-serve dump: end", process.error_lines)
        lines = process.error_lines[start:]
    text = "\n".join(lines)
    assert "hal-serve dump: engine ready" in text and "requests: 1" in text
    (request,) = [line for line in lines if line.startswith("  cmpl-")]
    assert f"{5 + len(CANARY)} prompt tokens" in request
    assert "of 300, 2 of 2 choices, running" in request
    (blocks,) = [line for line in lines if line.startswith("KV blocks:")]
    assert (
        sum(int(word.split()[0]) for word in blocks.removeprefix("KV blocks: ").split(", ")) == 256
    )
    assert "most recent call first" in text and "cli/serve.py" in text  # the front's
    assert "tasks: " in text
    process.line(r"engine_process\.py.*in _drive", process.error_lines)  # and of the engine
    assert CANARY not in "\n".join(process.error_lines[start:])
    assert server.complete("still here", max_tokens=1) == 200


def test_a_hung_step_shows_where(tmp_path: Path) -> None:
    script = write_script(tmp_path / "script.json", [rule("hang", hang_at=1)])
    arguments = fake_arguments(write_byte_model(tmp_path / "model"), script)
    with serving(arguments) as process:
        process.wait_ready()
        with open_request(process, "/v1/completions", {"prompt": "hang"}):
            wait_for(lambda: process.metric("queue_tokens") == 4, process)
            process.signal(signal.SIGUSR1)
            process.line(r"fake_engine\.py.*in _apply_fault", process.error_lines)


@pytest.mark.skipif(not has_otel(), reason="needs the extra otel")
def test_spans_have_the_attributes_of_the_conventions(server: Server) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01", "x-request-id": "span-1"}
    more = {"max_tokens": 5, "temperature": 0.5, "seed": 7, "stop": [CANARY]}
    assert server.complete("slow " + CANARY, headers, **more) == 200
    assert server.complete("nan", {"x-request-id": "span-2"}) == 500
    assert server.complete("x", {"x-request-id": "span-3"}, n=0) == 400
    server.process.get("/v1/models")

    wanted = {"span-1", "span-2", "span-3"}
    wait_for(lambda: wanted <= exported(server.collector).keys(), server.process)
    found = exported(server.collector)
    first, span = found["span-1"].attributes, found["span-1"].span
    assert span.name == f"text_completion {MODEL_NAME}" and span.kind == span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace_id, parent_id)
    assert isinstance(first["gen_ai.response.time_to_first_chunk"], float)
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "hal",
        "gen_ai.request.model": MODEL_NAME,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 5 + len(CANARY),
        "gen_ai.usage.output_tokens": 5,
        "http.response.status_code": 200,
    }
    assert expected.items() <= first.items()
    children = [one.span for one in found.values() if one.span.parent_span_id == span.span_id]
    children.sort(key=lambda child: child.start_time_unix_nano)
    assert [child.name for child in children] == ["tokenize", "queue", "prefill", "decode"]
    edges = [span.start_time_unix_nano, *(child.end_time_unix_nano for child in children)]
    assert edges == sorted(edges) and edges[-1] <= span.end_time_unix_nano
    assert edges[-1] - edges[0] >= 5 * STEP_S * 1e9
    assert found["span-2"].attributes["error.type"] == "numerical_error"
    assert found["span-2"].span.status.code == span.status.STATUS_CODE_ERROR
    assert found["span-3"].attributes["error.type"] == "invalid_value"
    assert found["span-3"].span.status.code == span.status.STATUS_CODE_UNSET
    roots = [one for one in found.values() if one.span.kind == span.SPAN_KIND_SERVER]
    assert all(one.attributes["http.route"] == "/v1/completions" for one in roots)
    assert CANARY.encode() not in b"".join(server.collector.bodies)


@dataclass(frozen=True)
class Exported:
    attributes: dict[str, object]
    span: Span


def exported(collector: Collector) -> dict[str, Exported]:
    """Roots by the id of their request, children by their own."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = {}
    for body in list(collector.bodies):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {a.key: _value(a.value) for a in span.attributes}
                key = str(attributes.get("hal.request_id", span.span_id.hex()))
                found[key] = Exported(attributes, span)
    return found


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, str(kind))


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert main(["--otlp-endpoint", "http://127.0.0.1:1/v1/traces"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hal-serve: HAL-E110") and "hal-runtime[otel]" in last


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["--metrics-compat", "tgi"], "--metrics-compat 'tgi' is not one of none, vllm"),
        (["--log-format", "xml"], "--log-format 'xml' is not one of text, json"),
        (["--otlp-endpoint", "localhost:4317"], "is not a URL"),
    ],
)
def test_wrong_flags(arguments: list[str], piece: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert piece in capsys.readouterr().err.splitlines()[-1]


def test_a_line_of_stats() -> None:
    before = Snapshot(10.0, stats_of(num_steps=1, num_blocks_total=8))
    after = stats_of(
        num_steps=9,
        num_blocks_total=8,
        num_blocks_used=2,
        num_generated_tokens=30,
        num_prompt_tokens=5,
        num_prefix_queries=8,
        num_prefix_hits=2,
    )
    found = between(before, Snapshot(12.0, after))
    assert "15.0 generated tok/s" in TEXT % found and "25.0 % of KV blocks used" in TEXT % found
    assert found == {
        "generated_tokens_per_s": 15.0,
        "prompt_tokens_per_s": 2.5,
        "running": 0,
        "waiting": 0,
        "kv_used_percent": 25.0,
        "prompt_cached_percent": 25.0,
        "preemptions": 0,
    }


def stats_of(**counts: int) -> EngineStats:
    zeros = {one.name: 0 for one in fields(EngineStats)}
    return EngineStats(**(zeros | counts))


def test_a_blocked_loop_shows() -> None:
    async def blocked() -> float:
        lag = LoopLag()
        watching = asyncio.create_task(lag.watch())
        await asyncio.sleep(0)
        time.sleep(0.3)
        while lag.worst_s == 0.0:
            await asyncio.sleep(0)
        watching.cancel()
        return lag.worst_s

    assert asyncio.run(blocked()) >= 0.19


def test_phases_of_two_clocks_never_overlap() -> None:
    facts = RequestFacts(submitted_at=10.0)
    assert facts.phases is None
    facts.count_tokens(12.0, queued_s=5.0)
    facts.count_tokens(13.0, queued_s=5.0)
    phases = facts.phases
    assert phases is not None
    assert (phases.queue_s, phases.prefill_s, phases.decode_s) == (2.0, 0.0, 1.0)
