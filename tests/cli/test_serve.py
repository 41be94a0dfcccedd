"""hal-serve's own options and its listening socket; the running server is in tests/e2e."""

from __future__ import annotations

import socket

import pytest

from hal.cli.listener import bind, is_loopback
from hal.cli.serve import parse_options
from hal.errors import ConfigError


def test_defaults() -> None:
    options = parse_options([], {})
    assert (options.host, options.port, options.keys) == ("127.0.0.1", 8000, None)
    assert options.served_name == options.config.model == "hal-tiny"
    assert options.fake_script is None


def test_options_and_environment() -> None:
    argv = ["folder/m", "--served-model-name", "name", "--port", "0", "--host", "::1"]
    options = parse_options(argv, {"HAL_API_KEY": "k", "HAL_SHUTDOWN_TIMEOUT": "2.5"})
    assert (options.served_name, options.config.model) == ("name", "folder/m")
    assert (options.port, options.host) == (0, "::1")
    assert options.keys is not None
    assert [options.keys.find(text) is not None for text in (b"k", b"K", b"")] == [
        True,
        False,
        False,
    ]
    assert options.shutdown_timeout_s == 2.5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--host", "0.0.0.0"], "HAL_API_KEY"),
        (["--host", "::"], "HAL_API_KEY"),
        (["--host", "my-machine"], "HAL_API_KEY"),
        (["--api-key", " "], "--api-key is empty"),
        (["--port", "65536"], "65536"),
        (["--port", "-1"], "-1"),
        (["--log-level", "loud"], "loud"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout"),
        (["--step-timeout", "nan"], "--step-timeout"),
        (["--heartbeat-timeout", "inf"], "--heartbeat-timeout"),
        (["--engine", "vllm"], "--engine"),
    ],
)
def test_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_options(argv, {})


def test_a_key_opens_other_addresses() -> None:
    assert parse_options(["--host", "0.0.0.0", "--api-key", "k"], {}).host == "0.0.0.0"


def test_a_misspelt_variable_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    parse_options([], {"HAL_PROT": "80"})
    assert "did you mean HAL_PORT?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback(host: str, wanted: bool) -> None:
    assert is_loopback(host) is wanted


def test_a_listener_has_no_delay_between_small_packets() -> None:
    with bind("127.0.0.1", 0) as listener:
        # asyncio turns Nagle's algorithm off for connections whose protocol is known to be TCP.
        assert listener.proto == socket.IPPROTO_TCP
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .*--port [0-9]+, which is free"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match="192.0.2.1"):
        bind("192.0.2.1", 0)
