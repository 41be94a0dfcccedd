"""The use of keys over restarts: the file alone, then servers that are killed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import openai
import pytest
from fake_serving import (
    MODEL_NAME,
    fake_arguments,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)

from hal.cli.serve import main
from hal.errors import ConfigError
from hal.server.key_usage import UsageFile
from hal.server.keys import KeyLimits
from hal.server.quotas import KeyUse, Quota


def quotas() -> dict[str, Quota]:
    return {name: Quota(KeyLimits(tokens_per_day=100)) for name in ("a", "b")}


async def spend(path: Path, num_tokens: int) -> int:
    """The day's tokens of `a` before and after a server that spent so many more."""
    kept = quotas()
    async with UsageFile(path).kept(kept):
        before = kept["a"].use().tokens_today
        kept["a"].admit(num_tokens)
    return before


def test_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "use"
    assert [asyncio.run(spend(path, n)) for n in (10, 20, 5)] == [0, 10, 30]
    assert not path.with_name("use.new").exists()


def test_one_server_at_a_time(tmp_path: Path) -> None:
    first = UsageFile(tmp_path / "use")
    with pytest.raises(ConfigError, match="another server counts in it"):
        UsageFile(tmp_path / "use")
    first.close()
    UsageFile(tmp_path / "use").close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"at": "now"}}'])
def test_something_else_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "use"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not the use of keys"):
        asyncio.run(spend(path, 1))
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; name a file in a writable"):
        UsageFile(tmp_path / "none" / "use")


def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "use.new").mkdir()
    monkeypatch.setattr("hal.server.key_usage._SAVE_INTERVAL_S", 0.01)
    attempts = list[object]()
    write = UsageFile._write

    def counted(file: UsageFile, use: dict[str, KeyUse]) -> None:
        attempts.append(use)
        write(file, use)

    monkeypatch.setattr(UsageFile, "_write", counted)

    async def serve() -> None:
        async with UsageFile(tmp_path / "use").kept(quotas()):
            while len(attempts) < 3:
                await asyncio.sleep(0.01)

    asyncio.run(serve())
    (record,) = caplog.records
    assert "the use of keys could not be saved" in record.getMessage()
    assert "Is a directory" in record.getMessage()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_spent_budget_stays_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: signal.Signals
) -> None:
    keys = tmp_path / "keys.toml"
    assert main(["keys", "add", str(keys), "team", "--tokens-per-day", "20"]) == 0
    key = capsys.readouterr().out.strip()
    model = write_byte_model(tmp_path / "model")
    script = write_script(tmp_path / "script.json")
    arguments = [*fake_arguments(model, script), "--api-keys", str(keys)]
    usage = Path(f"{keys}.usage")

    def complete(url: str) -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=5)
        client.completions.create(model=MODEL_NAME, prompt="0123456789", max_tokens=8)

    with serving(arguments) as server:
        complete(server.wait_ready().url)
        wait_for(lambda: usage.exists() and b'"tokens_today":18' in usage.read_bytes(), server)
        server.signal(how)
        server.wait()
    with serving(arguments) as server, pytest.raises(openai.RateLimitError) as refused:
        complete(server.wait_ready().url)
    assert refused.value.code == "insufficient_quota"
    assert "2 of this key's 20 per day are left" in refused.value.message
