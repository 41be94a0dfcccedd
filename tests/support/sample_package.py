"""The sample device package as an installed one: its entry points visible to child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "tests/sample_device"


class SamplePackage:
    """A copy in `folder` with the metadata that an installer would write from pyproject.toml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SOURCE / "hal_sample", folder / "hal_sample")
        project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = folder / f"hal_sample-{project['version']}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")

    def edit(self, file: str, old: str, new: str) -> None:
        """Change one place of the copy."""
        path = self.folder / "hal_sample" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} is in {file} {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def environ(self, **more: str) -> dict[str, str]:
        """For a child process that finds the package beside what this process finds."""
        inherited = os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join(p for p in (str(self.folder), inherited) if p)
        return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """`python -m` arguments, as a user would run a command of hal."""
        return subprocess.run(
            [sys.executable, "-P", "-m", *arguments],
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
