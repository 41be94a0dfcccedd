"""hal-run as a user runs it: files, pipes, wrong input."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tiny_checkpoints import make_checkpoint

from hal.cli import run
from hal.errors import RequestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def test_jsonl_in_jsonl_out_in_order(folder: Path, tmp_path: Path, device_name: str) -> None:
    lines: list[dict[str, object]] = [
        {"id": "long", "prompt": "The quick", "max_tokens": 9, "temperature": 0},
        {"id": "ids", "prompt_token_ids": [5, 6, 7], "max_tokens": 2},
        {"id": "chat", "messages": [{"role": "user", "content": "hi"}], "logit_bias": {"9": 100}},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines) + "\n\nplain text\n")
    code = run.main(
        [
            *(str(folder), "--device", device_name, "--max-model-len", "128"),
            *("--input", str(source), "--output", str(target), "--max-tokens", "4"),
        ]
    )
    assert code == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["id"] for record in records] == ["long", "ids", "chat", 5]
    tokens = [record["outputs"][0]["num_tokens"] for record in records]
    assert tokens[0] <= 9 and tokens[1:3] == [2, 4]
    assert records[3]["prompt"] == "plain text"


def test_prompt_streams_text(
    folder: Path, capsys: pytest.CaptureFixture[str], device_name: str
) -> None:
    arguments = [str(folder), "--device", device_name, "--prompt", "The quick"]
    assert run.main([*arguments, "--max-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"prompt": ', "line 1 is not valid JSON"),
        ('ok\n{"text": "x"}', "line 2 needs exactly one of"),
        ('{"prompt": "x", "messages": []}', "prompt, messages"),
        ('{"prompt": "x", "max_token": 3}', "unknown fields: max_token"),
        ('{"prompt": "x", "logit_bias": {"a": 1}}', "logit_bias maps token ids"),
    ],
)
def test_a_wrong_line_is_named(text: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        list(run.read_lines(io.StringIO(text), is_chat=False))


def test_errors_are_one_line_with_an_exit_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device_name: str
) -> None:
    missing = [str(tmp_path / "none"), "--prompt", "x"]
    assert run.main(missing) == 3
    assert run.main([str(folder), "--input", str(tmp_path / "none.jsonl")]) == 2
    assert run.main(["--promt", "x"]) == 2
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x", "n": "3"}\n')
    assert run.main([str(folder), "--device", device_name, "--input", str(bad)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert "did you mean --prompt?" in errors[-2]
    assert errors[-1].startswith("hal-run: HAL-E400: line 1: n must be a whole number")
