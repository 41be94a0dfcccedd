"""The listening socket, taken before anything slow starts."""

from __future__ import annotations

import errno
import ipaddress
import socket

from hal.errors import ConfigError

_BACKLOG = 1024
_NUM_TRIED_PORTS = 100


def bind(host: str, port: int) -> socket.socket:
    """Listen on host:port; raises ConfigError, with the next free port if this one is taken."""
    try:
        return _listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is taken; stop its owner or use {_suggestion(host, port)}"
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"port {port} on {host} needs more rights; use --port 8000"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error}; check --host") from error


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )[0]
    # asyncio sets TCP_NODELAY only where the protocol is given; without it each answer waits 40 ms.
    listener = socket.socket(family, kind, protocol)
    try:
        # A restart must not wait for old connections in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _suggestion(host: str, port: int) -> str:
    for candidate in range(port + 1, min(port + _NUM_TRIED_PORTS, 65536)):
        try:
            _listen(host, candidate).close()
        except OSError:
            continue
        return f"--port {candidate}, which is free"
    return "--port 0, which takes any free one"
