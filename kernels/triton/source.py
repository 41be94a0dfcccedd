"""What Triton compiles for this folder's kernels, for evidence about them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hal.evidence.source import CompiledPart, hash_of_files
from hal.kernels.triton.tuning import TABLES

_FOLDER = Path(__file__).parent


@cache
def compiled_part() -> CompiledPart | None:
    """The Triton sources with the tables that choose their constants; None without Triton."""
    compiler = triton_release()
    if compiler is None:
        return None
    tables = [_FOLDER.parent / name.rpartition(".")[2] / "tuning.toml" for name in TABLES.values()]
    sources = [*(_FOLDER / "src").glob("*.py"), *tables]
    return CompiledPart(source_hash=hash_of_files(_FOLDER.parent, sources), compiler=compiler)


def triton_release() -> str | None:
    """ "triton 3.6": a release fixes what it compiles, a patch of it hardly."""
    for package in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        try:
            return f"triton {'.'.join(version(package).split('.')[:2])}"
        except PackageNotFoundError:
            continue
    return None
