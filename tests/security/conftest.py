"""One scripted server with keys for the tests that attack it from outside."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fake_serving import (
    ServerProcess,
    fake_arguments,
    serving,
    write_byte_model,
    write_script,
)

KEY = "the-key-of-the-test"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("attacked")
    model = write_byte_model(folder / "model")
    arguments = fake_arguments(model, write_script(folder / "script.json"))
    with serving(arguments, HAL_API_KEY=KEY) as process:
        yield process.wait_ready()


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client
