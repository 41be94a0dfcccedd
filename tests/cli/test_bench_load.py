"""hal-bench serve against real servers: exact counts, honest latencies, clear failures, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_serving import (
    MODEL_NAME,
    ROOT,
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)

from hal.cli.bench import main
from hal.cli.bench.load.arrivals import Arrivals, offsets
from hal.cli.bench.load.figures import figures, parse_goodput, spread
from hal.cli.bench.load.runner import Load, Point
from hal.cli.bench.load.stream import Record
from hal.cli.bench.load.workload import (
    LONGEST,
    Lengths,
    Part,
    TextSize,
    Wanted,
    Workload,
    fitted,
    from_trace,
    prompt_of,
    synthetic,
)
from hal.cli.bench.trace_file import read_lines
from hal.errors import ConfigError

STEP_S = 0.005


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("load")
    rules = [
        rule("BAD", error_at=2),
        rule("SLOW", tokens=ids("slow"), step_delay_s=STEP_S),
        rule("NO", reject={"kind": "ContextLengthError", "code": "HAL-E410", "message": "no"}),
    ]
    script = write_script(
        folder / "script.json", rules, max_model_len=4096, num_blocks=8192, max_num_seqs=64
    )
    with serving(fake_arguments(write_byte_model(folder / "model"), script)) as process:
        yield process.wait_ready()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """The report of a run in which nothing failed."""
    code = main(["serve", *arguments, "--json", "-"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report = json.loads(captured.out)
    assert isinstance(report, dict)
    return report


def trace_of(folder: Path, *records: Mapping[str, object]) -> str:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def words_of(wanted: Wanted, size: TextSize | None = None) -> list[str]:
    prompt = prompt_of(wanted, size or TextSize())
    assert isinstance(prompt, str)
    return prompt.split()


def test_counts_are_those_of_the_server(
    target: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total")
    before = [target.metric(name) for name in names]
    small = ["--workload", "fixed", "--input-tokens", "60", "--output-tokens", "7"]
    report = run_json(capsys, target.url, *small, "--requests", "12", "--concurrency", "1,4")
    points = report["points"]
    assert report["model"] == MODEL_NAME
    assert isinstance(points, list) and [p["name"] for p in points] == [
        "concurrency 1",
        "concurrency 4",
    ]
    wait_for(lambda: target.metric("num_requests_running") == 0, target)
    after = [target.metric(name) for name in names]
    # Two probes of one token each measured how many tokens a word has.
    probe_tokens = 2
    assert after[1] - before[1] == 2 * 12 * 7 + probe_tokens
    assert sum(p["output_tokens"] for p in points) == 2 * 12 * 7
    for point in points:
        assert (point["num_completed"], point["num_failed"]) == (12, 0)
        assert point["tokens_counted_by"] == "server"
        assert point["ttft_ms"]["count"] == point["tpot_ms"]["count"] == 12
        assert point["itl_ms"]["count"] <= 12 * 6  # pieces that arrive together are one
        assert point["input_tokens"] / 12 == pytest.approx(60, rel=0.15)
        assert point["ttft_ms"]["p50"] <= point["e2el_ms"]["p50"]
        assert point["generator"]["us_per_piece"] > 0


def test_waiting_for_a_place_counts(
    target: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are due at once and one runs at a time: the last waits for all others to end."""
    count, num_tokens = 6, 8
    trace = trace_of(
        tmp_path,
        *({"prompt": "SLOW", "max_tokens": num_tokens, "timestamp": 5.0} for _ in range(count)),
    )
    arguments = ["--workload", "trace", "--trace-file", trace, "--concurrency", "1"]
    report = run_json(capsys, target.url, *arguments, "--goodput", "ttft:20", "tpot:100000")
    assert isinstance(report["points"], list)
    (point,) = report["points"]
    assert point["name"] == "trace x1"
    least_ms = (count - 1) * num_tokens * STEP_S * 1000
    assert point["ttft_ms"]["max"] >= least_ms
    assert point["e2el_ms"]["max"] >= least_ms + num_tokens * STEP_S * 1000
    assert point["tpot_ms"]["p50"] > 0
    # 8 steps of 5 ms before the second one's first token: only the first can be in time.
    assert point["goodput_share"] <= 1 / count
    assert report["goodput"] == {"ttft": 20.0, "tpot": 100000.0}


def test_a_sweep_as_table_and_page(
    target: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures_file = tmp_path / "load.html", tmp_path / "load.json"
    arguments = ["--api", "chat", "--workload", "prefix", "--output-tokens", "4"]
    sweep = ["--rate", "200,400", "--requests", "16", "--arrivals", "burst", "--burst-size", "4"]
    files = ["--html", str(page), "--json", str(figures_file)]
    assert main(["serve", target.url + "/v1/", *arguments, *sweep, *files]) == 0
    captured = capsys.readouterr()
    for piece in ("burst 200/s: 16 completed, 0 failed", "burst 400/s", "TTFT", "p99", "generator"):
        assert piece in captured.out
    assert "16 requests in" in captured.err
    html = page.read_text()
    assert html.count("<svg") == 2 + 2 * 4
    # Nothing is fetched; the only address is the server's own, as text.
    assert not re.search(r"(src|href)=|<script|url\(|@import", html)
    assert len(json.loads(figures_file.read_text())["points"]) == 2


def test_failures_are_counted_by_reason(
    target: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = trace_of(
        tmp_path,
        *({"prompt": word, "max_tokens": 4} for word in ("fine", "BAD", "NO", "BAD")),
    )
    code = main(["serve", target.url, "--workload", "trace", "--trace-file", trace])
    captured = capsys.readouterr()
    assert code == 1
    for piece in (
        "1 completed, 3 failed",
        "failed 2x: error event numerical_error",
        "failed 1x: HTTP 400 context_length_exceeded",
    ):
        assert piece in captured.out
    assert captured.err.splitlines()[-1] == "hal-bench: 3 requests failed; see above why"


def test_ctrl_c_prints_what_was_measured(target: ServerProcess, tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        {"prompt": "quick", "max_tokens": 2, "timestamp": 0},
        {"prompt": "SLOW", "max_tokens": 4000, "timestamp": 0},
        {"prompt": "quick", "max_tokens": 2, "timestamp": 3600},
    )
    command = [sys.executable, "-P", "-m", "hal.cli.bench", "serve", target.url]
    num_ended = target.metric("request_success_total", finished_reason="length")
    with subprocess.Popen(
        [*command, "--workload", "trace", "--trace-file", trace, "--duration", "9999"],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        # Two probes and the quick request have ended, the slow one runs.
        wait_for(
            lambda: (
                target.metric("request_success_total", finished_reason="length") == num_ended + 3
            )
        )
        wait_for(lambda: target.metric("num_requests_running") == 1)
        bench.send_signal(signal.SIGINT)
        out, err = bench.communicate(timeout=30)
    assert bench.returncode == 130, err
    assert "1 completed, 0 failed, 1 unfinished" in out
    assert "Traceback" not in err
    wait_for(lambda: target.metric("num_requests_running") == 0, target)


def test_a_server_that_dies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slow = rule("SLOW", tokens=ids("slow"), step_delay_s=STEP_S)
    script = write_script(tmp_path / "script.json", [slow], max_model_len=4096, num_blocks=8192)
    model = write_byte_model(tmp_path / "model")
    trace = trace_of(tmp_path, *({"prompt": "SLOW", "max_tokens": 4000} for _ in range(4)))
    arguments = ["--workload", "trace", "--trace-file", trace, "--concurrency", "2"]
    with serving(fake_arguments(model, script)) as server:
        server.wait_ready()

        def kill() -> None:
            wait_for(lambda: server.metric("num_requests_running") == 2, server)
            server.process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        assert main(["serve", server.url, *arguments]) == 1
        killer.join()
    out = capfd.readouterr().out
    assert "0 completed, 4 failed" in out
    refused = sum(map(int, re.findall(r"failed (\d)x: connection: ", out)))
    assert refused >= 2  # those that came too late for it at least, in words of their own
    assert sum(map(int, re.findall(r"failed (\d)x:", out))) == 4


class Rival(BaseHTTPRequestHandler):
    """A server of another kind: no usage, CRLF between lines, a connection for each request."""

    path_of_cut = "/v1/chat/completions"

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "other"}, {"id": "second"}]}'
        self._head("application/json")
        self.wfile.write(body if self.path == "/v1/models" else b"<html>")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._head("text/event-stream")
        for text in ("one", "two", "three"):
            event = {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
            self.wfile.write(f": hi\r\nevent: x\r\ndata: {json.dumps(event)}\r\n\r\n".encode())
        if self.path != self.path_of_cut:
            self.wfile.write(b"data: [DONE]\r\n\r\n")

    def _head(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def rival() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Rival) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_of_another_kind(rival: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, rival, "--requests", "5", "--concurrency", "2")
    assert report["model"] == "other"
    assert isinstance(report["points"], list)
    (point,) = report["points"]
    assert (point["num_completed"], point["output_tokens"]) == (5, 15)
    assert point["tokens_counted_by"] == "pieces of text"
    assert isinstance(report["notes"], list)
    assert ["second" in note or "no tokens" in note for note in report["notes"]] == [True, True]


def test_a_stream_that_is_cut_is_a_failure(rival: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", rival, "--api", "chat"]) == 2
    assert "without a finish_reason or [DONE]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        ([], ["needs a URL"]),
        (["ftp://x"], ["'ftp://x' is not a URL"]),
        (["http://127.0.0.1:99999"], ["is not a URL"]),
        (["http://127.0.0.1:9", "--requests", "1"], ["no connection to http://127.0.0.1:9"]),
        (["http://x", "--goodput", "tft:3"], ["--goodput 'tft:3'", "ttft"]),
        (["http://x", "--arrivals", "often"], ["poisson, constant, burst"]),
        (["http://x", "--concurrency", "0"], ["--concurrency 0", "from 1 to"]),
        (["http://x", "--rate", "1", "--concurrency", "1,2"], ["sweep over one of them"]),
        (["http://x", "--workload", "trace"], ["--trace-file"]),
        (["http://x", "--api-key", "a\nb"], ["--api-key has characters"]),
        (["http://x", "--requests", "0"], ["--requests must be from 1 to"]),
        (["http://x", "--workload", "prefix", "--prefix-tokens", "300"], ["--prefix-tokens 300"]),
    ],
)
def test_wrong_arguments(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hal-bench: HAL-E100: ")
    for piece in pieces:
        assert piece in last


def test_not_an_openai_server(rival: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"{rival}/elsewhere"]) == 2
    assert "names no model; is it an OpenAI-compatible server?" in capsys.readouterr().err


def test_prompts_that_do_not_fit(target: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--workload", "fixed", "--input-tokens", "4000", "--output-tokens", "4000"]
    assert main(["serve", target.url, *fixed]) == 2
    assert "do not fit the context of 4096 tokens" in capsys.readouterr().err


def test_arrivals() -> None:
    assert offsets(Arrivals.CONSTANT, 4.0, 4, 1, 0) == [0.0, 0.25, 0.5, 0.75]
    assert offsets(Arrivals.BURST, 4.0, 6, 3, 0) == [0.0, 0.0, 0.0, 0.75, 0.75, 0.75]
    poisson = offsets(Arrivals.POISSON, 10.0, 20_000, 1, 0)
    gaps = [b - a for a, b in zip(poisson, poisson[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.1, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)  # as an exponential has it
    assert poisson == offsets(Arrivals.POISSON, 10.0, 20_000, 1, 0)


def test_lengths_like_sharegpt() -> None:
    wanted = synthetic(Workload.SHAREGPT, Lengths(input=200, output=190), 20_000, "0")
    inputs = [one.input_tokens for one in wanted]
    # The cap at 2048 takes about one percent off the mean of the lognormal.
    assert sum(inputs) / len(inputs) == pytest.approx(200, rel=0.04)
    assert max(inputs) == LONGEST and sorted(inputs)[10_000] == pytest.approx(121, rel=0.04)
    assert wanted == synthetic(Workload.SHAREGPT, Lengths(input=200, output=190), 20_000, "0")


def test_prefixes_are_shared_and_the_rest_is_not() -> None:
    lengths = Lengths(input=40, output=1, prefix=30, num_prefixes=2)
    texts = [words_of(one) for one in synthetic(Workload.PREFIX, lengths, 4, "0")]
    assert texts[0][:30] == texts[2][:30] != texts[1][:30] == texts[3][:30]
    assert len({tuple(text[30:]) for text in texts}) == 4
    assert {len(text) for text in texts} == {40}


def test_a_trace_with_hashes(tmp_path: Path) -> None:
    trace = trace_of(
        tmp_path,
        {"timestamp": 12.5, "input_length": 25, "output_length": 3, "hash_ids": [7, 9]},
        {"timestamp": 10, "input_length": 20, "hash_ids": [7, 8]},
    )
    first, second = from_trace(read_lines(trace), 50)
    assert (first.at_s, second.at_s) == (0.0, 2.5)
    assert (first.output_tokens, second.output_tokens) == (50, 3)
    texts = [words_of(one) for one in (first, second)]
    assert texts[0][:10] == texts[1][:10] and texts[0][10:] != texts[1][10:20]
    with pytest.raises(ConfigError, match="line 1 has no text 'prompt'"):
        from_trace(read_lines(trace_of(tmp_path, {"timestamp": 1})), 50)


def test_token_ids_of_a_trace(
    target: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = trace_of(tmp_path, {"prompt_token_ids": [5, 6, 7], "max_tokens": 2})
    arguments = ["--workload", "trace", "--trace-file", trace]
    report = run_json(capsys, target.url, *arguments)
    assert isinstance(report["points"], list)
    assert (report["points"][0]["input_tokens"], report["points"][0]["output_tokens"]) == (3, 2)
    assert main(["serve", target.url, *arguments, "--api", "chat"]) == 2
    assert "prompt_token_ids need --api completions" in capsys.readouterr().err


def test_text_has_the_wanted_number_of_tokens() -> None:
    wanted = Wanted(parts=(Part("a", 30), Part("b", 30)), output_tokens=1)
    assert len(words_of(wanted, TextSize(fixed=10.0, per_word=2.0))) == 15 + 10


def test_what_does_not_fit_is_shortened() -> None:
    short = Wanted(parts=(Part("a", 30),), output_tokens=10)
    assert fitted(short, 100) is short
    cut = fitted(Wanted(parts=(Part("a", 30), Part("b", 300)), output_tokens=500), 200)
    assert cut.input_tokens + cut.output_tokens == 200 - 10 - 8
    assert cut.parts[0] == Part("a", 30) and cut.output_tokens == 91


def test_figures_of_known_records() -> None:
    point = Point(Load(name="x", concurrency=1, offsets=None, timeout_s=1, duration_s=1))
    point.started_s, point.seconds = 100.0, 10.0
    for i in range(4):
        record = Record(due_s=100.0 + i, possible_s=100.0 + i, sent_s=100.5 + i)
        record.first_s, record.ended_s = 101.0 + i, 102.0 + i
        record.prompt_tokens, record.output_tokens, record.is_counted = 7, 5, True
        record.gaps.extend([0.25] * 4)
        record.num_pieces = 5
        point.records.append(record)
    point.records[3].error = "HTTP 500"
    found = figures(point, parse_goodput(["ttft:1000", "tpot:249"]))
    assert (found.num_completed, found.num_failed, found.failures) == (3, 1, {"HTTP 500": 1})
    assert found.seconds == 5.0 and found.requests_per_s == 0.6
    assert found.output_tokens_per_s == 3.0 and found.input_tokens_per_s == 21 / 5
    assert found.ttft_ms is not None and found.ttft_ms.p99 == 1000.0
    assert found.tpot_ms is not None and found.tpot_ms.mean == 250.0
    assert found.e2el_ms is not None and found.e2el_ms.max == 2000.0
    assert found.goodput_per_s == 0.0  # every request is 1 ms per token too slow
    assert found.generator.late_ms is not None and found.generator.late_ms.p50 == 500.0
    assert figures(point, parse_goodput(["tpot:250"])).goodput_share == 0.75


def test_percentiles_are_interpolated() -> None:
    found = spread([0.001 * i for i in range(1, 102)])
    assert found is not None and (found.p50, found.p90) == pytest.approx((51.0, 91.0))
    assert spread([]) is None
