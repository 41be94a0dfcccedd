"""HAL_<FLAG> names are mechanical, misspelt ones are noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.env import (
    cache_folder,
    child_environment,
    flag_value,
    parse_switch,
    unknown_names,
    variable_of,
)


def test_names() -> None:
    assert variable_of("max-model-len") == "HAL_MAX_MODEL_LEN"
    environ = {"HAL_MAX_MODEL_LEN": "5", "max-model-len": "6"}
    assert flag_value("max-model-len", environ) == "5"
    assert flag_value("port", environ) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("True", True), (" on ", True), ("0", False), ("no", False), ("", False)],
)
def test_switches(text: str, value: bool) -> None:
    assert parse_switch(text) is value


def test_a_switch_that_is_neither() -> None:
    with pytest.raises(ValueError, match="maybe"):
        parse_switch("maybe")


def test_unknown_names() -> None:
    environ = {"HAL_PROT": "1", "HAL_PORT": "2", "HAL_TRACEBACK": "1", "HALO": "1", "PATH": "x"}
    assert unknown_names(["port"], environ) == ["HAL_PROT"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HAL_CACHE_FOLDER": "/big/disk", "XDG_CACHE_HOME": "/xdg"}, "/big/disk"),
        ({"HAL_CACHE_FOLDER": "here"}, str(Path.cwd() / "here")),
        ({"HAL_CACHE_FOLDER": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/hal/packed"),
        ({"XDG_CACHE_HOME": ""}, str(Path.home() / ".cache/hal/packed")),
        ({"XDG_CACHE_HOME": "not/absolute"}, None),
    ],
)
def test_the_cache_folder(environ: dict[str, str], expected: str | None) -> None:
    assert unknown_names([], environ) == []
    assert cache_folder(environ) == (None if expected is None else Path(expected))


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert cache_folder({}) is None


@pytest.mark.parametrize(
    ("statements", "users", "spin"),
    [
        ("import hal; hal.LLM", None, "1000"),
        ("import hal; hal.LLM", "7", "7"),
        ("import torch, hal; hal.LLM", None, "unset"),  # too late: it would only mislead
        ("import hal", None, "unset"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    statements: str, users: str | None, spin: str
) -> None:
    environ = {name: text for name, text in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if users is not None:
        environ["GOMP_SPINCOUNT"] = users
    code = f"{statements}\nimport os\nprint(os.environ.get('GOMP_SPINCOUNT', 'unset'))"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == spin


def test_children_get_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert child_environment()["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_environment()["GOMP_SPINCOUNT"] == "7"
