"""API keys in a file: what is refused in it, the command that writes it, and a server with it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from fake_serving import (
    MODEL_NAME,
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)

from hal.cli.serve import main
from hal.errors import ConfigError
from hal.server.keys import ApiKey, KeyLimits, KeyRing, Scope, digest_of, load_keys

DIGEST = digest_of(b"text").hex()
RULES = [rule("slow", tokens=ids("x" * 400), step_delay_s=0.02)]


def keys_in(folder: Path, text: str) -> list[ApiKey]:
    path = folder / "keys.toml"
    path.write_text(text)
    return load_keys(path)


def test_a_file_of_keys(tmp_path: Path) -> None:
    text = f"""
        [team-a]
        sha256 = "{DIGEST}"
        [ops]
        sha256 = "{digest_of(b"other").hex()}"
        scopes = ["admin", "inference"]
        requests_per_minute = 5
        min_priority = -3
    """
    ring = KeyRing(keys_in(tmp_path, text))
    team, ops = ring.find(b"text"), ring.find(b"other")
    assert team == ApiKey(name="team-a", digest=digest_of(b"text"))
    assert ops is not None
    assert ops.scopes == {Scope.ADMIN, Scope.INFERENCE}
    assert ops.limits == KeyLimits(requests_per_minute=5, min_priority=-3)
    assert ring.find(b"") is ring.find(b"Text") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key"),
        ("[a", "is not TOML"),
        ("a = 1", r"\[a\] must be a table"),
        ("[a]", "sha256 must be"),
        ("[a]\nsha256 = 'text'", "sha256 must be"),
        (f"['.a']\nsha256 = '{DIGEST}'", "a name is"),
        (f"[a]\nsha256 = '{DIGEST}'\nrpm = 1", "'rpm' is unknown; there are sha256, scopes"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = []", "scopes must be a list of inference and admin"),
        (f"[a]\nsha256 = '{DIGEST}'\nscopes = ['root']", "scopes must be"),
        (f"[a]\nsha256 = '{DIGEST}'\nmax_concurrency = 0", "max_concurrency must be a whole"),
        (f"[a]\nsha256 = '{DIGEST}'\nmax_concurrency = true", "max_concurrency must be a whole"),
        (f"[a]\nsha256 = '{DIGEST}'\n[b]\nsha256 = '{DIGEST}'", r"\[a\] and \[b\] are the same"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keys_in(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_keys(tmp_path / "keys.toml")


def test_the_command_makes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    assert main(["keys", "add", str(path), "team", "--max-concurrency", "3"]) == 0
    team = capsys.readouterr().out.strip()
    assert main(["keys", "add", str(path), "ops.1", "--admin"]) == 0
    ops = capsys.readouterr().out.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert team not in path.read_text()
    found = KeyRing(load_keys(path))
    key = found.find(team.encode())
    assert key is not None
    assert (key.name, key.limits.max_concurrency) == ("team", 3)
    admin = found.find(ops.encode())
    assert admin is not None
    assert Scope.ADMIN in admin.scopes


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["add"], "usage: hal-serve keys add FILE NAME"),
        (["remove", "FILE", "x"], "usage: hal-serve keys add FILE NAME"),
        (["add", "FILE", "a b"], "a name is"),
        (["add", "FILE", "taken"], "has a key named 'taken'"),
        (["add", "FILE", "x", "--max-concurrency", "0"], "max_concurrency must be"),
        (["add", "FILE", "x", "--rpm", "1"], "unknown flag --rpm"),
    ],
)
def test_the_command_refuses_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], cause: str
) -> None:
    path = tmp_path / "keys.toml"
    main(["keys", "add", str(path), "taken"])
    before = path.read_text()
    assert main(["keys", *(str(path) if word == "FILE" else word for word in words)]) == 2
    assert cause in capsys.readouterr().err.splitlines()[-1]
    assert path.read_text() == before


@dataclass(frozen=True, slots=True)
class Keyed:
    """A server with three keys."""

    server: ServerProcess
    texts: dict[str, str]

    def client(self, name: str) -> openai.OpenAI:
        url = f"{self.server.url}/v1"
        return openai.OpenAI(base_url=url, api_key=self.texts[name], max_retries=0)

    def ask(self, name: str, method: str, path: str, body: object = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.texts[name]}"}
        if body is not None:
            headers["content-type"] = "application/json"
        content = None if body is None else json.dumps(body).encode()
        url = f"{self.server.url}{path}"
        return httpx.request(method, url, headers=headers, content=content, timeout=30)

    def running(self, name: str) -> int:
        found = {key["name"]: key for key in self.ask("ops", "GET", "/admin/keys").json()["keys"]}
        return int(found[name]["running"])


@pytest.fixture
def keyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Keyed]:
    path = tmp_path / "keys.toml"
    texts = {}
    for name, flags in (
        ("small", ["--tokens-per-minute", "200", "--max-concurrency", "1"]),
        ("rare", ["--requests-per-minute", "2"]),
        ("ops", ["--admin"]),
    ):
        assert main(["keys", "add", str(path), name, *flags]) == 0
        texts[name] = capsys.readouterr().out.strip()
    model = write_byte_model(tmp_path / "model")
    script = write_script(tmp_path / "script.json", RULES)
    arguments = [*fake_arguments(model, script), "--api-keys", str(path), "--log-level", "debug"]
    with serving(arguments) as server:
        yield Keyed(server.wait_ready(), texts)
    said = "\n".join(server.out_lines + server.error_lines)
    assert not [name for name, text in texts.items() if text in said]


def complete(client: openai.OpenAI, prompt: str = "hi", max_tokens: int = 4) -> str:
    answer = client.completions.create(model=MODEL_NAME, prompt=prompt, max_tokens=max_tokens)
    return answer.choices[0].text


def test_limits_of_keys_in_a_server(keyed: Keyed) -> None:
    rare = keyed.client("rare")
    complete(rare)
    raw = rare.completions.with_raw_response.create(model=MODEL_NAME, prompt="hi", max_tokens=4)
    assert raw.headers["x-ratelimit-limit-requests"] == "2"
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as refused:
        complete(rare)
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 38

    small = keyed.client("small")
    with pytest.raises(openai.RateLimitError, match="can never run") as refused:
        complete(small, max_tokens=300)
    assert refused.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.RateLimitError, match="201 tokens"):
        small.embeddings.create(model=MODEL_NAME, input=[[1] * 101, [1] * 100])
    for _ in range(5):  # 100 are reserved each time and most come back
        complete(small, max_tokens=98)

    lifted = {"key": "rare", "requests_per_minute": None}
    assert keyed.ask("ops", "PATCH", "/admin/limits", lifted).status_code == 200
    for _ in range(4):
        complete(rare)
    counts = keyed.ask("ops", "GET", "/metrics").text
    assert 'reason="rate_limit_exceeded"} 1.0' in counts
    assert 'reason="tokens_exceeded"} 2.0' in counts


def test_a_client_that_leaves_gives_its_place_back(keyed: Keyed) -> None:
    small = keyed.client("small")
    with small.completions.create(
        model=MODEL_NAME, prompt="slow", max_tokens=100, stream=True
    ) as stream:
        next(iter(stream))
        assert keyed.running("small") == 1
        (inside,) = keyed.ask("ops", "GET", "/admin/requests").json()["requests"]
        assert inside["request_id"].startswith("cmpl-") and inside["age_s"] > 0
        assert (inside["num_prompt_tokens"], inside["max_tokens"]) == (4, 100)
        assert inside["num_new_tokens"] >= 1 and not inside["is_waiting"]
        with pytest.raises(openai.RateLimitError) as refused:
            complete(small)
        assert refused.value.code == "concurrency_exceeded"
    wait_for(lambda: keyed.running("small") == 0, keyed.server)
    complete(small)


def test_admin_routes(keyed: Keyed) -> None:
    for method, path in (("GET", "/admin/keys"), ("POST", "/admin/drain")):
        answer = keyed.ask("small", method, path, None if method == "GET" else {})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    for path, body, param in (
        ("/admin/limits", {"key": "nobody"}, "key"),
        ("/admin/limits", {"key": "small", "rpm": 1}, "rpm"),
        ("/admin/limits", {"key": "small", "max_concurrency": 0}, None),
    ):
        error = keyed.ask("ops", "PATCH", path, body)
        assert (error.status_code, error.json()["error"]["param"]) == (400, param)
    answer = keyed.ask("ops", "PATCH", "/admin/limits", {"key": "small", "max_concurrency": 7})
    assert answer.json()["limits"]["max_concurrency"] == 7
    assert answer.json()["limits"]["tokens_per_minute"] == 200
    assert keyed.ask("ops", "PUT", "/admin/log-level", {"level": "loud"}).status_code == 400
    assert keyed.ask("ops", "PUT", "/admin/log-level", {"level": "error"}).status_code == 200
    assert keyed.ask("ops", "POST", "/admin/drain", {}).status_code == 202
    assert keyed.server.wait() == 0


def test_prefixes_are_pinned_for_a_key_and_let_go_again(keyed: Keyed) -> None:
    answer = keyed.ask("ops", "POST", "/admin/pins", {"key": "small", "prompt": "x" * 43})
    assert answer.status_code == 200, answer.text
    pin = answer.json()
    assert (pin["key"], pin["tokens"]) == ("small", 40)  # of 43, blocks of 4
    ids_pin = keyed.ask("ops", "POST", "/admin/pins", {"key": "rare", "prompt": [5] * 16}).json()
    messages = [{"role": "system", "content": "You are brief. " * 4}]
    chat_pin = keyed.ask("ops", "POST", "/admin/pins", {"key": "rare", "messages": messages}).json()
    found = keyed.ask("ops", "GET", "/admin/pins").json()["pins"]
    assert found == [pin, ids_pin, chat_pin]
    wait_for(lambda: 'state="pinned"} 0.0' not in keyed.ask("ops", "GET", "/metrics").text)
    assert keyed.ask("ops", "DELETE", f"/admin/pins/{pin['name']}").status_code == 200
    for name in (pin["name"], "nobody"):
        gone = keyed.ask("ops", "DELETE", f"/admin/pins/{name}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert keyed.ask("ops", "GET", "/admin/pins").json()["pins"] == [ids_pin, chat_pin]


WRONG_PINS: tuple[tuple[dict[str, object], str], ...] = (
    ({"key": "nobody", "prompt": "x"}, "invalid_value"),
    ({"key": "small"}, "invalid_value"),
    ({"key": "small", "prompt": "x", "messages": []}, "invalid_value"),
    ({"key": "small", "prompt": "x" * 40, "ttl": 3}, "invalid_value"),
    ({"key": "small", "prompt": [999_999]}, "invalid_value"),
    ({"key": "small", "prompt": "x"}, "invalid_value"),  # fills no block
    ({"key": "small", "prompt": ""}, "invalid_value"),
    ({"key": "small", "prompt": []}, "invalid_value"),
    ({"key": "small", "prompt": [5] * 5000}, "context_length_exceeded"),
)


def test_too_many_pins_are_a_conflict_and_wrong_ones_are_refused(keyed: Keyed) -> None:
    answers = [
        keyed.ask("ops", "POST", "/admin/pins", {"key": "small", "prompt": [n + 1] * 120})
        for n in range(6)
    ]
    assert answers[0].status_code == 200
    assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (409, "pins_full")
    refused = keyed.ask("small", "POST", "/admin/pins", {"key": "small", "prompt": "x" * 40})
    assert refused.status_code == 403
    for body, code in WRONG_PINS:
        refused = keyed.ask("ops", "POST", "/admin/pins", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code), refused.text


def test_without_keys_nobody_is_an_admin(server: ServerProcess) -> None:
    answer = httpx.get(f"{server.url}/admin/keys")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
