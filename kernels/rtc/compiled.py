"""What is compiled of this folder, for evidence about its kernels."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from hal.evidence.source import CompiledPart, hash_of_files
from hal.kernels.rtc.program import SOURCES


@cache
def compiled_part() -> CompiledPart | None:
    """The sources of src/; None without NVRTC: what another compiler makes shows nothing of it."""
    try:
        release = ".".join(version("nvidia-cuda-nvrtc").split(".")[:2])
    except PackageNotFoundError:
        return None
    files = [path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h")]
    return CompiledPart(source_hash=hash_of_files(SOURCES, files), compiler=f"NVRTC {release}")
