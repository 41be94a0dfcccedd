"""What every test shares: the device under test, no network, one thread."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

# Before torch or a hub client is imported, here or in a child process.
os.environ["HF_HUB_OFFLINE"] = "1"
# Test shapes are tiny: a second thread would only wait, for seconds on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Packed weights of tests stay out of the user's cache; one folder for children as well.
_CACHE = tempfile.TemporaryDirectory(prefix="hal-cache-", ignore_cleanup_errors=True)
os.environ["HAL_CACHE_FOLDER"] = _CACHE.name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_unconfigure() -> None:
    _CACHE.cleanup()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device to test on, as for hal-serve")
    parser.addoption(
        "--seeds", type=int, default=1, help="draws of weights and text of each tiny model"
    )
    parser.addoption(
        "--native-module", type=Path, help="a build of the native module to test, not the installed"
    )


def pytest_configure(config: pytest.Config) -> None:
    heed_signals()
    if path := config.getoption("--native-module"):
        load_native_module(path)


def heed_signals() -> None:
    """What a shell's background job or nohup has ignored, all children of tests would ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def load_native_module(path: Path) -> None:
    """Make `path` the module that the CPU kernels find."""
    name = "hal.kernels.cpu._C"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, f"{path} is no module"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    """The value of --device: "cpu" unless told."""
    return str(request.config.getoption("--device"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--device")
    if device != "cpu":
        return
    skip = pytest.mark.skip(reason="needs an accelerator: pytest --device cuda")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
