"""hal-serve with a scripted engine, as a real process: one token per byte, exact answers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import httpx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL_NAME = "byte-model"
EOS = 256
VOCAB_SIZE = 258
TIMEOUT_S = 60.0

Value = TypeVar("Value")

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_byte_model(folder: Path, *, has_template: bool = True) -> Path:
    """A folder with a tokenizer of one token per byte, EOS, and a chat template; no weights."""
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(_ALPHABET)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<eos>", "<user>")])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"eos_token": "<eos>"}
    if has_template:
        config["chat_template"] = (
            "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}"
            "{% if think is defined %}T{{ think }}{% endif %}"
        )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return folder


def ids(text: str) -> list[int]:
    """The token ids of a text in the byte model."""
    table = _byte_table()
    return [_ALPHABET.index(table[byte]) for byte in text.encode()]


def write_script(path: Path, rules: Sequence[dict[str, object]] = (), **settings: object) -> Path:
    """A script of server/fake_engine.py; `rules` win over the echo."""
    script = {"vocab_size": VOCAB_SIZE, "max_model_len": 512, "rules": list(rules), **settings}
    path.write_text(json.dumps(script))
    return path


def rule(word: str, **behaviour: object) -> dict[str, object]:
    """What prompts with `word` in them do."""
    return {"prompt_contains": ids(word), **behaviour}


class ServerProcess:
    """One running hal-serve; its output is kept line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stderr is not None
        self.process = process
        self.out_lines: list[str] = []
        self.error_lines: list[str] = []
        self._client = httpx.Client(verify=False)  # plain HTTP: no certificates to load
        self._readers = [
            threading.Thread(target=self._keep, args=pair)
            for pair in ((process.stdout, self.out_lines), (process.stderr, self.error_lines))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def url(self) -> str:
        """Known from the first line on, before the model is loaded."""
        line = self.line(r"(http://[^ ;]+)/ready", self.error_lines)
        match = re.search(r"(http://[^ ;]+)/ready", line)
        assert match is not None
        return match[1]

    def wait_ready(self) -> ServerProcess:
        self.line(r"^ready\.", self.out_lines)
        return self

    def line(self, pattern: str, lines: list[str]) -> str:
        """The first line that matches, as soon as it is there."""
        return wait_for(lambda: next((x for x in list(lines) if re.search(pattern, x)), ""), self)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code; all output has arrived when this returns."""
        code = self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        self._client.close()

    def engine_pid(self) -> int:
        return wait_for(lambda: next(iter(children_of(self.process.pid)), 0), self)

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics; 0.0 when nothing was counted yet."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"hal:{name}{{") and all(label in line for label in wanted):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def get(self, path: str) -> httpx.Response:
        return self._client.get(f"{self.url}{path}")

    def _keep(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))


def open_request(server: ServerProcess, path: str, body: dict[str, object]) -> socket.socket:
    """Send a request; the caller closes the connection whenever it likes."""
    url = httpx.URL(server.url)
    assert url.port is not None
    payload = json.dumps(body).encode()
    connection = socket.create_connection((url.host, url.port))
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    return connection


def wait_for(probe: Callable[[], Value], server: ServerProcess | None = None) -> Value:
    """Ask again until the answer is true; fails with what the server has said."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(0.01)
    said = [] if server is None else server.out_lines + server.error_lines
    raise AssertionError("it did not happen; the server said:\n" + "\n".join(said[-40:]))


@contextmanager
def serving(arguments: Iterable[str | Path], **environ: str) -> Iterator[ServerProcess]:
    """hal-serve with these arguments on a free port; gone afterwards whatever happens."""
    command = [sys.executable, "-P", "-m", "hal.cli.serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = ServerProcess(process)
    try:
        yield server
    finally:
        server.close()


def fake_arguments(folder: Path, script: Path) -> list[str]:
    return [str(folder), "--engine", f"fake:{script}", "--served-model-name", MODEL_NAME]


def children_of(pid: int) -> list[int]:
    """Process ids of direct children, whichever thread started them (Linux)."""
    try:
        listed = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for children in listed for child in children]


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def _byte_table() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
