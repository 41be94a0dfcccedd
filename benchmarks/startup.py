"""What a user waits for: --help, hal-info, and hal-serve from typing it to the first token.

    python benchmarks/startup.py

Runs the installed or checked-out commands as processes; wall time, median and range.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import record

BODY = json.dumps(
    {"stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello!"}]}
)
GIVE_UP_S = 60.0


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", f"hal.cli.{name}", *arguments]


def run_once(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_token() -> float:
    """Start hal-serve on the embedded model and ask until a streamed token arrives."""
    port = free_port()
    start = time.perf_counter()
    server = subprocess.Popen(
        command("serve", "--port", str(port)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not has_token(port):
            if time.perf_counter() - start > GIVE_UP_S or server.poll() is not None:
                raise SystemExit(f"hal-serve gave no token in {GIVE_UP_S:.0f} s")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def has_token(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)
    headers = {"content-type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", BODY, headers)
        response = connection.getresponse()
        if response.status != 200:
            return False
        chunks = (json.loads(line[6:]) for line in response if line.startswith(b"data: {"))
        return any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    cases: dict[str, Callable[[], float]] = {
        "hal-serve --help": lambda: run_once("serve", "--help"),
        "hal-run --help": lambda: run_once("run", "--help"),
        "hal-info": lambda: run_once("info"),
        "hal-serve to first token": first_token,
    }
    rows = {}
    for name, measure in cases.items():
        measure()
        rows[name] = asdict(record.spread([measure() for _ in range(runs)]))
        sys.stdout.write(f"{name:<26} {rows[name]['median']:.2f} s\n")
    record.write(record.RESULTS / "startup.json", {**record.header("startup"), "seconds": rows})


if __name__ == "__main__":
    main()
