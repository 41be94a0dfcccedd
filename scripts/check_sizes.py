"""Fails on a function over 60 lines or a file over 500 (C++ under kernels/*/src: 800).

The limits are where reading stops being easy; usual sizes are 15 and 300 lines. A long function
is split by what its parts mean, not at line 60.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
MAX_KERNEL_SOURCE_LINES = 800
SOURCE_FOLDERS = (
    *("hal", "devices", "engine", "kernels", "server"),
    *("tests", "scripts", "benchmarks", "tools"),
)
SUFFIXES = {".py", ".sh", ".cpp", ".cc", ".h", ".hpp", ".cu", ".cuh", ".hip", ".cl", ".cmake"}


def max_file_lines(path: Path) -> int:
    is_kernel_source = len(path.parts) > 3 and path.parts[0] == "kernels" and path.parts[2] == "src"
    return MAX_KERNEL_SOURCE_LINES if is_kernel_source else MAX_FILE_LINES


def size_violations(path: Path, source: str) -> Iterator[str]:
    """What is too long in one file; `path` is relative to the repository."""
    num_lines = len(source.splitlines())
    if num_lines > max_file_lines(path):
        yield f"{path}: {num_lines} lines, at most {max_file_lines(path)}"
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                limit = f"{num_lines} lines, at most {MAX_FUNCTION_LINES}"
                yield f"{path}:{node.lineno}: {node.name}() has {limit}"


def source_paths(root: Path) -> Iterator[Path]:
    """Relative paths of all sources, each file once (hal/engine is a link to engine)."""
    for top in SOURCE_FOLDERS:
        for path in sorted((root / top).rglob("*")):
            relative = path.relative_to(root)
            through_link = any((root / parent).is_symlink() for parent in relative.parents)
            if path.suffix in SUFFIXES and path.is_file() and not through_link:
                yield relative


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    found = [
        violation
        for path in source_paths(root)
        for violation in size_violations(path, (root / path).read_text(encoding="utf-8"))
    ]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
