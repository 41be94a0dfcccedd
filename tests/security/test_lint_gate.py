"""What no source may contain, and that the gate sees it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("hal", "devices", "engine", "kernels", "server")
_SECRETS = ("digest", "secret", "password", "api_key", "key_text")


def ruff(source: str) -> str:
    """What ruff, as configured here, says about a file of the server."""
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "server/planted.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import pickle\n\nprint(pickle.loads(b''))\n", "TID251"),
        ("import dill\n\nprint(dill)\n", "TID251"),
        ("import marshal\n\nprint(marshal)\n", "TID251"),
        ("import shelve\n\nprint(shelve)\n", "TID251"),
        ("import torch\n\nprint(torch.load('x'))\n", "TID251"),
        ("from jinja2 import Environment\n\nprint(Environment())\n", "TID251"),
        ("import yaml\n\nprint(yaml)\n", "TID251"),
        ("print(eval('1'))\n", "S307"),
        ("exec('1')\n", "S102"),
    ],
)
def test_planted_sources_are_refused(source: str, rule: str) -> None:
    assert rule in ruff(source)


def test_a_harmless_source_passes() -> None:
    assert "All checks passed" in ruff("import json\n\nprint(json.loads('1'))\n")


def compared_secrets(tree: ast.AST) -> Iterator[int]:
    """Lines that compare something with the name of a secret by == or !=, which takes longer the
    more of it is right."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            if any(secret in side.lower() for side in sides for secret in _SECRETS):
                yield node.lineno


def test_the_comparison_of_a_secret_is_seen() -> None:
    assert list(compared_secrets(ast.parse("x = key.digest == given"))) == [1]
    assert list(compared_secrets(ast.parse("x = compare_digest(key.digest, given)"))) == []


@pytest.mark.parametrize("package", ["server", "hal"])
def test_secrets_are_compared_in_constant_time(package: str) -> None:
    paths = [path for path in (ROOT / package).rglob("*.py") if not path.is_symlink()]
    assert paths
    found = {path.name: list(compared_secrets(ast.parse(path.read_text()))) for path in paths}
    assert not {name: lines for name, lines in found.items() if lines}
