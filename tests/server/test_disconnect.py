"""A client that leaves frees everything, whether it streamed or not; its neighbours go on."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from fake_serving import (
    ServerProcess,
    fake_arguments,
    ids,
    open_request,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)

# Each step takes 10 ms, so these run for seconds unless they are aborted.
SLOW = {"prompt": "slow", "max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of its own: gauges must not see the requests of other tests."""
    folder = tmp_path_factory.mktemp("slow")
    model = write_byte_model(folder / "model")
    script = write_script(
        folder / "script.json",
        [rule("slow", tokens=ids("x" * 400), step_delay_s=0.01)],
        max_num_seqs=2,
    )
    with serving(fake_arguments(model, script)) as process:
        yield process.wait_ready()


def is_idle(server: ServerProcess) -> bool:
    return (
        server.metric("num_requests_running") == 0
        and server.metric("num_requests_waiting") == 0
        and server.metric("kv_blocks", state="used") == 0
        and server.metric("kv_cache_usage_perc") == 0
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_while_its_request_runs(
    slow_server: ServerProcess, path: str, stream: bool
) -> None:
    server = slow_server
    before = server.metric("requests_aborted_total", cause="client_disconnect")
    generated = server.metric("generation_tokens_total")
    body = {**SLOW, "stream": stream, "messages": [{"role": "user", "content": "slow"}]}
    with open_request(server, path, body):
        wait_for(lambda: server.metric("kv_blocks", state="used") > 0, server)
        assert server.metric("num_requests_running") == 1
    wait_for(lambda: is_idle(server), server)
    assert server.metric("requests_aborted_total", cause="client_disconnect") == before + 1
    assert server.metric("generation_tokens_total") - generated < 400


def test_clients_that_leave_while_they_wait(slow_server: ServerProcess) -> None:
    server = slow_server
    before = server.metric("requests_aborted_total", cause="client_disconnect")
    connections = [
        open_request(server, "/v1/completions", {**SLOW, "stream": i % 2 == 0}) for i in range(6)
    ]
    wait_for(lambda: server.metric("num_requests_waiting") == 4, server)
    for connection in reversed(connections):
        connection.close()
    wait_for(lambda: is_idle(server), server)
    assert server.metric("requests_aborted_total", cause="client_disconnect") == before + 6


def test_all_prompts_of_a_request_are_aborted(slow_server: ServerProcess) -> None:
    server = slow_server
    with open_request(server, "/v1/completions", {**SLOW, "prompt": ["slow", "slow"], "n": 2}):
        wait_for(lambda: server.metric("num_requests_running") == 2, server)
    wait_for(lambda: is_idle(server), server)


def test_a_neighbour_is_unharmed(slow_server: ServerProcess) -> None:
    server = slow_server
    with open_request(server, "/v1/completions", {**SLOW, "stream": True}) as connection:
        wait_for(lambda: server.metric("num_requests_running") == 1, server)
        body = {"prompt": "neighbour", "max_tokens": 20}
        with open_request(server, "/v1/completions", body) as neighbour:
            connection.close()
            received = b""
            while b'"finish_reason":"stop"' not in received:
                part = neighbour.recv(65536)
                assert part, received
                received += part
    assert b'"text":"neighbour"' in received
    wait_for(lambda: is_idle(server), server)


def test_a_client_that_leaves_within_its_body(slow_server: ServerProcess) -> None:
    server = slow_server
    url = httpx.URL(server.url)
    assert url.port is not None
    before = server.metric("http_requests_total", handler="/v1/completions", status="499")
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
    wait_for(
        lambda: (
            server.metric("http_requests_total", handler="/v1/completions", status="499")
            == before + 1
        ),
        server,
    )
    assert is_idle(server)
