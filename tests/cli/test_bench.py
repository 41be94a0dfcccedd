"""hal-bench as a user runs it: a page from a trace, hit rates from prompts, wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hal.cache_policy import CachePolicy
from hal.cli.bench import main
from hal.cli.bench.cache_replay import Prompt, Replay
from hal.cli.bench.timeline import DECODE, FAILED, PREFILL, Bar, bars, read_steps
from hal.cli.bench.trace_file import read_lines
from hal.cli.run import main as run_main


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def step(number: int, *ran: tuple[str, int], **more: object) -> dict[str, object]:
    return {
        "step": number,
        "start_s": number * 1.0,
        "seconds": 1.0,
        "ran": [[name, 0, num_tokens] for name, num_tokens in ran],
        "num_waiting": 0,
        "num_preemptions": 0,
        "blocks": {"used": 1, "cached": 0, "total": 4},
        **more,
    }


def test_a_real_run_becomes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "steps.jsonl"
    arguments = ["hal-tiny", "--device", "cpu", "--max-model-len", "64", "--max-tokens", "4"]
    assert run_main([*arguments, "--prompt", "hi", "--trace", str(trace)]) == 0
    assert main(["timeline", str(trace)]) == 0
    page = (tmp_path / "steps.jsonl.html").read_text()
    num_steps = len(trace.read_text().splitlines())
    assert f"{num_steps} steps" in page and f"{num_steps} steps" in capsys.readouterr().out
    assert PREFILL in page and DECODE in page
    assert "http" not in page and "<script" not in page


def test_steps_of_one_kind_are_one_bar_and_a_gap_ends_it(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "steps.jsonl",
        step(0, ("a", 5)),
        step(1, ("a", 1), ("<b>", 3)),
        step(2, ("a", 1)),
        step(3, ("<b>", 1), num_preemptions=1),
        step(4, ("a", 1), ("<b>", 1), num_preemptions=1, failed=True),
    )
    steps = read_steps(read_lines(str(path)))
    assert [found.num_preempted for found in steps] == [0, 0, 0, 1, 0]
    assert sorted(bars(steps, ["a 0", "<b> 0"]), key=lambda bar: (bar.lane, bar.start_s)) == [
        Bar(0, 0.0, 1.0, PREFILL),
        Bar(0, 1.0, 3.0, DECODE),
        Bar(0, 4.0, 5.0, FAILED),
        Bar(1, 1.0, 2.0, PREFILL),
        Bar(1, 3.0, 4.0, DECODE),
        Bar(1, 4.0, 5.0, FAILED),
    ]
    assert main(["timeline", str(path), "--html", str(tmp_path / "x.html")]) == 0
    assert "&lt;b&gt; 0" in (tmp_path / "x.html").read_text()


def test_hit_rates_of_a_trace_are_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3 prompts of 2 full blocks: the second finds both, the third one; room for 8."""
    ids = list(range(8))
    path = write_lines(
        tmp_path / "requests.jsonl",
        {"prompt_token_ids": ids, "timestamp": 0},
        {"prompt_token_ids": [*ids, 1], "timestamp": 1, "priority": 3},
        {"prompt_token_ids": [*ids[:4], 7, 7, 7, 7], "timestamp": 2},
        {"prompt_token_ids": ids, "timestamp": 3, "tenant": "other"},
    )
    arguments = ["cache-replay", str(path), "--blocks", "8", "--block-size", "4"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 requests, 8 full blocks\n")
    assert re.findall(r"^(\S+) +8 +(\S+%) +0 +0", out, re.MULTILINE) == [
        (name, "37.5%") for name in ("lru", "lfu", "priority-lru", "priority-lfu")
    ]


def test_ids_of_hashed_blocks_and_a_ttl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"hash_ids": [1, 2, 3], "timestamp": at} for at in (0, 50, 150)]
    path = write_lines(tmp_path / "requests.jsonl", *lines)
    assert main(["cache-replay", str(path), "--blocks", "2,3", "--cache-ttl", "60"]) == 0
    rows = re.findall(r"^lru +(\d) +(\S+)% +(\d) +(\d)", capsys.readouterr().out, re.MULTILINE)
    assert rows == [("2", "22.2", "0", "2"), ("3", "33.3", "0", "3")]


def test_a_replay_loses_no_block() -> None:
    replay = Replay(5, CachePolicy())
    prompts = [Prompt(0.0, [bytes([i, j]) for j in range(i % 7)], 0) for i in range(200)]
    prompts += prompts[::-1]
    assert len(replay.run(prompts).check()) <= 5
    assert 0 < replay.num_found < replay.num_asked


@pytest.mark.parametrize(
    ("arguments", "text", "complaint"),
    [
        (["timeline"], None, "timeline needs a file"),
        (["draw"], None, "unknown subcommand 'draw'"),
        (["timeline", "FILE"], "", "has no lines"),
        (["timeline", "FILE"], "{}", "line 1 needs a number 'num_preemptions'"),
        (["timeline", "FILE"], '\n{"num_preemptions": 0}', "line 2 has no blocks"),
        (["cache-replay", "FILE"], "[1]", "line 1 is no JSON object"),
        (["cache-replay", "FILE"], "{", "line 1 is not valid JSON"),
        (["cache-replay", "FILE"], '{"hash_ids": [-1]}', "needs 'hash_ids', a list of whole"),
        (["cache-replay", "FILE"], '{"prompt_token_ids": [2147483648]}', "2^31 or more"),
        (["cache-replay", "FILE", "--blocks", "0"], "{}", "--blocks 0 is no list"),
        (["cache-replay", "FILE", "--block-size", "0"], "{}", "--block-size must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str],
    text: str | None,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text or "")
    assert main([str(path) if part == "FILE" else part for part in arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hal-bench: HAL-E100: ") and complaint in last
