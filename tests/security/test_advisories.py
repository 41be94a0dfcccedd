"""One regression test for each class of published advisories against servers of this kind.

The ids are of vLLM, SGLang, llama.cpp, llama-cpp-python, Ollama, Triton, TGI and Starlette: what
went wrong there must not go wrong here.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from asgi_calls import call, scope_of
from fake_serving import MODEL_NAME, ServerProcess

from hal.engine.chat_template import ChatTemplate
from hal.engine.checkpoint import resolve_model
from hal.engine.prefix_hash import PrefixHasher
from hal.engine.weights import CheckpointReader
from hal.errors import ModelError, RequestError, WeightsError
from hal.server.admin import ADMIN_ROUTES
from hal.server.app import ROUTES, build_app
from hal.server.async_engine import AsyncEngine
from hal.server.front import Front
from hal.server.limits import OPEN_PATHS
from hal.server.messages import decode_from_engine, decode_to_engine
from hal.server.supervisor import EngineProcess
from hal.server.tool_parser import FAMILIES

ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}|/(?:root|home|tmp|usr|var)/")


def still_serves(http: httpx.Client) -> bool:
    body = {"model": MODEL_NAME, "prompt": "abc", "max_tokens": 3}
    answer = http.post("/v1/completions", json=body)
    return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "abc"


# Pickle over sockets: CVE-2024-9052, CVE-2024-9053, CVE-2025-29783, CVE-2025-32444, CVE-2026-3059,
# CVE-2026-3060, CVE-2026-7301
def test_a_pickle_on_the_engines_socket_is_no_message(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickled = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    for decode in (decode_to_engine, decode_from_engine):
        with pytest.raises((msgspec.MsgspecError, RequestError)):
            decode(pickled)
    assert not marker.exists()


# torch.load on weights: CVE-2025-24357, CVE-2025-62164
def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    marker = tmp_path / "ran"
    (tmp_path / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(ModelError, match="pickled weights"):
        resolve_model(str(tmp_path))
    assert not marker.exists()


def write_weights(folder: Path, header: dict[str, object], data: bytes, length: int = -1) -> None:
    text = json.dumps(header).encode()
    length = len(text) if length < 0 else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + data)


# Offsets beyond the file, sizes that wrap: CVE-2026-7482, CVE-2025-53630, CVE-2026-27940
@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([8], [0, 1 << 20]),
        ([8], [8, 40]),
        ([8], [32, 0]),
        ([-8], [0, 32]),
        ([1 << 32, 1 << 32], [0, 0]),
        ([(1 << 62) + 8], [0, 32]),
        ([8, 1 << 63], [0, 0]),
    ],
)
def test_tensors_must_lie_in_their_file(
    tmp_path: Path, shape: list[int], offsets: list[int]
) -> None:
    write_weights(
        tmp_path, {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, b"\0" * 32
    )
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 7])
def test_a_header_must_lie_in_its_file(tmp_path: Path, length: int) -> None:
    entry = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    write_weights(tmp_path, {"a": entry}, b"\0" * 32, length)
    with pytest.raises(WeightsError):
        CheckpointReader(tmp_path)


# Files outside the folder through an index: CVE-2024-37032
@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a/../../b"])
def test_an_index_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside the folder"):
        CheckpointReader(folder)


# Code in model repositories: CVE-2025-66448, CVE-2026-22807, CVE-2026-27893
def test_code_of_a_model_folder_is_never_run(tmp_path: Path) -> None:
    from hal.build import build_engine
    from hal.config import EngineConfig

    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py"):
        (tmp_path / name).write_text(code)
    auto_map = {name: f"{module}.X" for name, module in AUTO_MAP.items()}
    config = {"model_type": "x", "architectures": ["X"], "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    entry = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    write_weights(tmp_path, {"a": entry}, b"\0" * 32)
    with pytest.raises(ModelError, match="model_type 'x'"):
        build_engine(EngineConfig(model=str(tmp_path), device="cpu"))
    assert not marker.exists()


AUTO_MAP = {"AutoConfig": "configuration_x", "AutoModelForCausalLM": "modeling_x"}


# Templates: CVE-2026-5760, CVE-2024-34359, CVE-2025-61620, CVE-2025-62426
@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os') }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{% set x = namespace(__class__=1) %}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    ],
)
def test_a_template_reaches_nothing_and_ends(text: str) -> None:
    template = ChatTemplate({"default": text}, {}, "test")
    try:
        said = template.render([{"role": "user", "content": "hi"}])
    except RequestError:
        return
    assert "class" not in said  # undefined names are empty
    assert "uid=" not in said


def test_a_request_cannot_bring_a_template(http: httpx.Client) -> None:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": "hi"}],
        "chat_template": "{{ ''.__class__ }}",
    }
    answer = http.post("/render", json=body)
    assert answer.status_code == 400 or "chat_template" in answer.headers["x-hal-ignored"]
    assert "class" not in answer.json().get("prompt", "")


# eval and ReDoS in tool parsers: CVE-2025-9141, CVE-2025-48887
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_tool_parser_runs_nothing_and_is_linear(family: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    for text in (f"[f(x={code})]", f"[{code}]", "[" * 50_000, "[f(" * 20_000, "<tool_call>" * 5000):
        parser = FAMILIES[family]({})
        parser.feed(text)
        parser.finish()
    assert not marker.exists()


# Parameters without bounds: CVE-2026-34756, CVE-2024-8939, CVE-2024-8768, CVE-2026-21869,
# CVE-2026-44223
@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**6},
        {"best_of": 10**6},
        {"n": -1},
        {"max_tokens": -5},
        {"max_tokens": 10**18},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [-1]},
        {"prompt": [2**40]},
        {"logprobs": 10**9},
        {"top_k": -(2**40)},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1e300},
        {"presence_penalty": 1e300},
        {"temperature": -1},
        {"min_tokens": 10**9},
        {"seed": 2**70},
        {"stop": ["x" * 10**6]},
        {"stop_token_ids": list(range(100_000))},
        {"n_discard": -1},
    ],
)
def test_numbers_have_bounds(http: httpx.Client, fields: dict[str, object]) -> None:
    body = {"model": MODEL_NAME, "prompt": "abc", "max_tokens": 3, **fields}
    answer = http.post("/v1/completions", json=body)
    ignored = answer.headers.get("x-hal-ignored", "")
    assert answer.status_code == 400 or set(fields) <= set(ignored.split(", "))
    assert still_serves(http)


# Huge headers, hosts and paths: CVE-2025-48956, CVE-2026-48746; ranges: CVE-2025-62727
@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a" * 100_000},
        {f"x-{i}": "a" for i in range(500)},
        {"host": "a/../b"},
        {"host": "x" * 5000},
    ],
)
def test_headers_have_bounds(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.get("/v1/models", headers=headers)
    assert answer.status_code in (400, 431)
    assert still_serves(http)


@pytest.mark.parametrize("host", ["127.0.0.1/live", "x?/live", "localhost#/live", "@/live"])
def test_the_host_decides_nothing_about_keys(server: ServerProcess, host: str) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"host": host})
    assert answer.status_code in (400, 401)


# A browser made to ask in another site's name: CVE-2024-28224
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example"])
def test_without_keys_only_local_names_are_served(host: str) -> None:
    def status(host: str) -> int:
        front = Front(AsyncEngine(EngineProcess(["never started"])), "m")
        scope = scope_of("GET", "/v1/models", [(b"host", host.encode())])
        return asyncio.run(call(build_app(front), scope)).status

    assert status(host) == 400
    for local in ("localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:8000", "[::1]", "10.0.0.7"):
        assert status(local) == 200


# Routes without their check: CVE-2026-7302 and the LoRA route of SGLang
def all_routes() -> Iterator[tuple[str, str]]:
    for method, path, _ in (*ROUTES, *ADMIN_ROUTES):
        if path not in OPEN_PATHS:
            yield method, path.replace("{name:path}", "x")


@pytest.mark.parametrize(
    ("method", "path"), [*all_routes(), ("GET", "/nowhere"), ("GET", "//live")]
)
def test_every_route_needs_the_key(server: ServerProcess, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}):
        given = {"content-type": "application/json", **headers}
        answer = httpx.request(method, f"{server.url}{path}", headers=given, content=b"{}")
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "path", ["/live/../v1/models", "/live%2f..%2fv1/models", "/live;/v1/models"]
)
def test_no_spelling_of_a_path_goes_round_the_key(server: ServerProcess, path: str) -> None:
    port = httpx.URL(server.url).port
    with socket.create_connection(("127.0.0.1", port or 0)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(100).split()[1] in (b"401", b"400")


# Addresses fetched for a client: CVE-2025-6242, CVE-2026-24779, CVE-2026-0599
@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url", "input_image", "file"])
def test_nothing_is_fetched(http: httpx.Client, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        part = {"type": kind, kind: {"url": url}, "image_url": {"url": url}, "file_url": url}
        body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": [part]}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 400
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


# What errors tell: CVE-2026-22778, CVE-2025-23319, CVE-2025-23320, CVE-2025-23334
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b"{"),
        ("/v1/completions", b'{"prompt": {"a": 1}}'),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": "x"}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 5}]}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
        ("/v1/embeddings", b'{"input": [[999999999]]}'),
        ("/v1/models/../../etc/passwd", b"{}"),
        ("/detokenize", b'{"tokens": [-5]}'),
    ],
)
def test_errors_hold_no_addresses_and_no_paths(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert not ADDRESS.search(answer.text)
    assert "Traceback" not in answer.text


# Side channels of the prefix cache: CVE-2025-46570, CVE-2025-25183, CVE-2025-46722
def test_hashes_of_prefixes_are_secret_and_differ_between_tenants() -> None:
    tokens = np.arange(64, dtype=np.int32)

    def keys(secret: bytes, tenant: bytes) -> set[bytes]:
        found = PrefixHasher(secret, 16).prefix(tokens, tenant).keys
        assert [len(key) for key in found] == [16] * 4
        return set(found)

    assert keys(b"1", b"a") == keys(b"1", b"a")
    assert not keys(b"1", b"a") & keys(b"1", b"b")
    assert not keys(b"1", b"a") & keys(b"2", b"a")
