"""One LLM inference runtime for every vendor's hardware.

Importing this loads neither torch nor a driver; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.async_llm import AsyncLLM
    from hal.config import EngineConfig
    from hal.errors import HalError
    from hal.llm import LLM, RequestOutput
    from hal.sampling_params import SamplingParams

_EXPORTS = {
    "AsyncLLM": "hal.async_llm",
    "EngineConfig": "hal.config",
    "HalError": "hal.errors",
    "LLM": "hal.llm",
    "RequestOutput": "hal.llm",
    "SamplingParams": "hal.sampling_params",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "EngineConfig",
    "HalError",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

try:
    __version__ = version("hal-runtime")
except PackageNotFoundError:  # run from a checkout without installing
    __version__ = "0.0.0+checkout"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hal' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
