"""One LLM inference runtime for every vendor's hardware.

Importing this loads neither torch nor a driver; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.async_llm import AsyncLLM
    from hal.config import EngineConfig
    from hal.errors import HalError
    from hal.llm import LLM, RequestOutput
    from hal.planning.plan import plan
    from hal.sampling_params import SamplingParams

    __version__: str

_EXPORTS = {
    "AsyncLLM": "hal.async_llm",
    "EngineConfig": "hal.config",
    "GuidedDecodingParams": "hal.guided_decoding",
    "HalError": "hal.errors",
    "LLM": "hal.llm",
    "RequestOutput": "hal.llm",
    "SamplingParams": "hal.sampling_params",
    "plan": "hal.planning.plan",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "EngineConfig",
    "GuidedDecodingParams",
    "HalError",
    "RequestOutput",
    "SamplingParams",
    "__version__",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hal' has no attribute {name!r}")
    from hal.env import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    return getattr(import_module(_EXPORTS[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hal-runtime")
    except PackageNotFoundError:  # run from a checkout without installing
        return "0.0.0+checkout"
