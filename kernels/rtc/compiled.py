"""What is compiled of this folder, for evidence about its kernels."""

from __future__ import annotations

from functools import cache

from hal.evidence.source import CompiledPart, hash_of_files
from hal.kernels.rtc.program import SOURCES


@cache
def compiled_part() -> CompiledPart:
    """The sources of src/. Which compiler makes what of them is told by each row's proof."""
    files = [path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h")]
    return CompiledPart(source_hash=hash_of_files(SOURCES, files), compiler="NVRTC or hiprtc")
