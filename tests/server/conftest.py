"""One scripted server for all tests that only ask it questions."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fake_serving import (
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    write_byte_model,
    write_script,
)

RULES = [
    rule("TWO!", choices=[ids("first"), ids("second")]),
    rule("slow", tokens=ids("x" * 400), step_delay_s=0.01),
    rule("nan", tokens=ids("abcdef"), error_at=3),
    rule("fall", error_at=1),
    rule("cached", num_cached_tokens=4),
    rule("refuse", reject={"kind": "ContextLengthError", "code": "HAL-E410", "message": "no room"}),
]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("fake")
    model = write_byte_model(folder / "model")
    script = write_script(folder / "script.json", RULES)
    with serving(fake_arguments(model, script)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, verify=False) as client:
        yield client
