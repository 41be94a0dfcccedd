"""Who may call: API keys by the SHA-256 of their text, each with its scopes and limits."""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from hal.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST = 10**12


class Scope(StrEnum):
    """What a key opens."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one key may use; None is no limit.

    tokens_per_minute: of prompts and answers together
    tokens_per_day: the same, of a day of UTC
    max_concurrency: API requests that generate at once
    min_priority: the lowest, so most urgent, `priority` a request may have; lower ones are raised
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrency: int | None = None
    min_priority: int | None = None

    @property
    def is_counted(self) -> bool:
        """Whether what was used before matters."""
        rates = (self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day)
        return any(limit is not None for limit in rates)


LIMIT_NAMES = tuple(field.name for field in fields(KeyLimits))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One caller. `name` is also the tenant: fair turns and cached prefixes are kept by it."""

    name: str
    digest: bytes
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    limits: KeyLimits = KeyLimits()


class KeyRing:
    """All keys of a server."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.keys = tuple(keys)

    def find(self, text: bytes) -> ApiKey | None:
        """The key with that text, in a time that tells nothing about any key."""
        digest = digest_of(text)
        matches = [key for key in self.keys if hmac.compare_digest(key.digest, digest)]
        return matches[0] if matches else None


def digest_of(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def single_key(text: str) -> ApiKey:
    """The key of --api-key: inference without limits, under no name."""
    return ApiKey(name="", digest=digest_of(text.encode()))


def load_keys(path: Path) -> list[ApiKey]:
    """The keys of a TOML file, a table each. Raises ConfigError naming the table and the entry."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--api-keys {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--api-keys {path} is not TOML: {error}") from error
    keys = [_key(path, name, table) for name, table in tables.items()]
    if not keys:
        raise ConfigError(f"--api-keys {path} has no key; hal-serve keys add {path} NAME makes one")
    named: dict[bytes, str] = {}
    for key in keys:
        if key.digest in named:
            other = named[key.digest]
            raise ConfigError(f"--api-keys {path}: [{other}] and [{key.name}] are the same key")
        named[key.digest] = key.name
    return keys


def _key(path: Path, name: str, table: object) -> ApiKey:
    where = f"--api-keys {path}: [{name}]"
    check_name(name, where)
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    unknown = sorted(set(table) - {"sha256", "scopes", *LIMIT_NAMES})
    if unknown:
        known = ", ".join(("sha256", "scopes", *LIMIT_NAMES))
        raise ConfigError(f"{where}: {unknown[0]!r} is unknown; there are {known}")
    digest = table.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{where}: sha256 must be the 64 hex digits of the key's SHA-256")
    return ApiKey(
        name=name,
        digest=bytes.fromhex(digest),
        scopes=_scopes(table.get("scopes", [Scope.INFERENCE]), where),
        limits=key_limits({k: v for k, v in table.items() if k in LIMIT_NAMES}, where),
    )


def check_name(name: str, where: str) -> None:
    """Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: a name is 1 to 64 of A-Z a-z 0-9 . _ - and starts with a letter or digit"
        )


def _scopes(value: object, where: str) -> frozenset[Scope]:
    if not isinstance(value, list) or not value or not set(value) <= set(Scope):
        raise ConfigError(f"{where}: scopes must be a list of {' and '.join(Scope)}; got {value!r}")
    return frozenset(map(Scope, value))


def key_limits(values: Mapping[str, object], where: str) -> KeyLimits:
    """Checked limits; raises ConfigError naming the wrong one."""
    for name, value in values.items():
        least = -_MOST if name == "min_priority" else 1
        if value is not None and (type(value) is not int or not least <= value <= _MOST):
            raise ConfigError(f"{where}: {name} must be a whole number from {least}; got {value!r}")
    return KeyLimits(**values)  # type: ignore[arg-type]  # checked above
