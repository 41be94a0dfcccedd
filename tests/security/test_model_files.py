"""Damaged model files: read, or refused by a typed error; no crash, no hang, no flood of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import model_mutants
import pytest
from tiny_checkpoints import train_tokenizer

COUNTS = {"safetensors": 100_000, "config": 100_000, "tokenizer": 10_000, "template": 10_000}
_TIMEOUT_S = 600


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_mutants(kind: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if kind == "tokenizer":
        (tmp_path / "original.json").write_text(train_tokenizer().to_str())
    command = [sys.executable, model_mutants.__file__, kind, str(COUNTS[kind]), "1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == COUNTS[kind]
    assert min(counts.values()) > COUNTS[kind] // 100  # both kinds, or the mutants test nothing
