"""hal-serve keys: make API keys for the file that --api-keys reads."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.errors import ConfigError
from hal.server.keys import LIMIT_NAMES, Scope, check_name, digest_of, key_limits, load_keys

USAGE = "usage: hal-serve keys add FILE NAME [--admin] [--requests-per-minute N] …"
PREFIX = "hal-"
_NUM_RANDOM_BYTES = 32

_FLAGS = FlagGroup(
    "key",
    (
        Flag(name="admin", help="may also use /admin routes", convert=None),
        Flag(name="requests-per-minute", help="of this key", metavar="N", convert=int),
        Flag(
            name="tokens-per-minute", help="prompts and answers together", metavar="N", convert=int
        ),
        Flag(name="tokens-per-day", help="the same, of a UTC day", metavar="N", convert=int),
        Flag(name="max-concurrency", help="requests at once", metavar="N", convert=int),
        Flag(name="min-priority", help="the most urgent it may ask for", metavar="N", convert=int),
    ),
)


def keys_command(words: Sequence[str]) -> int:
    """Write a new key's digest into the file and its text to stdout, the only time it is shown.

    Raises ConfigError; nothing is written then.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] != "add" or len(words) < 3 or any(w.startswith("-") for w in words[1:3]):
        raise ConfigError(f"hal-serve keys: {' '.join(words)[:100]!r} is not a command; {USAGE}")
    path, name = Path(words[1]), words[2]
    line = CommandLine("hal-serve keys add", "Make a key.", (_FLAGS,), takes_model=False)
    values = line.parse(words[3:], {})
    check_name(name, f"key {name!r}")
    key_limits({k: v for k, v in values.items() if k in LIMIT_NAMES}, f"key {name!r}")
    if path.exists() and any(key.name == name for key in load_keys(path)):
        raise ConfigError(
            f"{path} has a key named {name!r}; choose another name, or remove it there"
        )
    text = PREFIX + secrets.token_urlsafe(_NUM_RANDOM_BYTES)
    _append(path, _table(name, text, values))
    print(text)
    print(
        f"hal-serve keys: {path} has its digest only; keep the key, it is not shown again",
        file=sys.stderr,
    )
    return 0


def _table(name: str, text: str, values: dict[str, object]) -> str:
    scopes = [Scope.INFERENCE, *([Scope.ADMIN] if values.get("admin") else [])]
    lines = [f'["{name}"]', f'sha256 = "{digest_of(text.encode()).hex()}"']
    lines.append("scopes = [" + ", ".join(f'"{scope}"' for scope in scopes) + "]")
    lines += [f"{limit} = {values[limit]}" for limit in LIMIT_NAMES if limit in values]
    return "\n".join(lines) + "\n"


def _append(path: Path, table: str) -> None:
    """A new file is readable by its owner only."""
    try:
        path.touch(mode=0o600)
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if file.tell() else "") + table)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
