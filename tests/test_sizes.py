"""scripts/check_sizes.py finds what is too long, and nothing in the repository is."""

from __future__ import annotations

from pathlib import Path

import check_sizes

ROOT = Path(__file__).resolve().parent.parent


def found(path: str, source: str) -> list[str]:
    return list(check_sizes.size_violations(Path(path), source))


def test_nothing_in_the_checkout_is_too_long() -> None:
    paths = list(check_sizes.source_paths(ROOT))
    assert Path("tests/test_sizes.py") in paths
    assert not any(path.parts[:2] == ("hal", "engine") for path in paths)
    assert [v for p in paths for v in found(str(p), (ROOT / p).read_text(encoding="utf-8"))] == []


def test_function_limit() -> None:
    function = "def f():\n" + "    x = 1\n" * 59
    assert found("hal/a.py", function) == []
    (message,) = found("hal/a.py", function + "    x = 1\n")
    assert "f() has 61 lines" in message
    method = "class A:\n    async def g(self):\n" + "        x = 1\n" * 60
    assert "g() has 61 lines" in found("hal/a.py", method)[0]


def test_file_limits() -> None:
    assert found("hal/a.py", "x = 1\n" * 500) == []
    assert found("hal/a.py", "x = 1\n" * 501)
    assert found("kernels/cpu/bind.cpp", "//\n" * 501)
    assert found("kernels/cpu/src/a.cpp", "//\n" * 800) == []
    assert found("kernels/cpu/src/a.cpp", "//\n" * 801)
