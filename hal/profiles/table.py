"""Reads `devices.toml` and finds a profile by its name, or by its arch."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from hal.device import Feature, MemoryKind
from hal.dtypes import parse_dtype
from hal.errors import ConfigError
from hal.profiles.profile import Link, Profile

_DATA_FILE = "devices.toml"
_GIB = 1 << 30


@cache
def all_profiles() -> Mapping[str, Profile]:
    """Every profile by name, in the order of the file."""
    text = files("hal.profiles").joinpath(_DATA_FILE).read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return MappingProxyType({name: _profile(name, row) for name, row in table.items()})


def find_profile(text: str) -> Profile:
    """The profile of that name or alias, else the first one of that arch; raises ConfigError."""
    profiles = all_profiles()
    name = text.strip().lower()
    if name in profiles:
        return profiles[name]
    for profile in profiles.values():
        if name in profile.aliases:
            return profile
    for profile in profiles.values():
        if profile.arch == name:
            return profile
    archs = dict.fromkeys(p.arch for p in profiles.values())
    close = nearest_profiles(name)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(
        f"unknown device profile {text!r}; {hint}known: {', '.join(profiles)}; "
        f"archs: {', '.join(archs)}"
    )


def nearest_profiles(name: str) -> list[str]:
    """Up to three names, aliases and archs that `name` may have meant."""
    names = [n for p in all_profiles().values() for n in (p.name, *p.aliases, p.arch)]
    return difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3)


def _profile(name: str, row: Mapping[str, Any]) -> Profile:
    """One table of the file; units there are GiB, GB/s and TFLOP/s."""
    return Profile(
        name=name,
        title=row["title"],
        vendor=row["vendor"],
        arch=row["arch"],
        device=row["device"],
        memory_kind=MemoryKind(row["memory_kind"]),
        memory_bytes=int(row["memory_gib"] * _GIB),
        bandwidth_bytes_per_s=row["bandwidth_gb_s"] * 1e9,
        compute_units=row["compute_units"],
        simd_width=row["simd_width"],
        shared_memory_bytes=row.get("shared_memory_kib", 0) * 1024,
        peak_flops={parse_dtype(d): tera * 1e12 for d, tera in row["peak_tflops"].items()},
        features=frozenset(Feature(f) for f in row["features"]),
        links=tuple(
            Link(
                kind=link["kind"],
                bytes_per_s=link["gb_s"] * 1e9,
                max_devices=link["max_devices"],
            )
            for link in row.get("links", ())
        ),
        sources=row["sources"],
        aliases=tuple(row.get("aliases", ())),
    )
