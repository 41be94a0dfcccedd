"""What may follow `--device null:`: a profile to pose as, and faults to inject at steps.

null:PROFILE    null:PROFILE,FAULT@STEP,...    null:FAULT@STEP,...
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import StrEnum

from hal.errors import ConfigError
from hal.memory import format_bytes
from hal.profiles import Profile, find_profile

LOADING = 0
"""The step of everything that happens before the first one."""

_STEP = re.compile(r"[0-9]{1,9}")


class Fault(StrEnum):
    """What a device can do wrong; the names that `--device null:` takes."""

    OOM = "oom"
    NAN = "nan"
    HANG = "hang"
    CRASH = "crash"


_FAULTS = tuple(str(fault) for fault in Fault)


@dataclass(frozen=True, slots=True)
class FaultAt:
    """A fault and the step it happens in."""

    fault: Fault
    step: int

    def __str__(self) -> str:
        return f"{self.fault}@{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NullSpec:
    """A parsed `null:` detail. `named` is how the user called the profile: its name or its arch."""

    named: str = ""
    profile: Profile | None = None
    faults: tuple[FaultAt, ...] = ()

    @property
    def reason(self) -> str:
        """What was asked for, in one line."""
        parts = [_pose_reason(self.named, self.profile)] if self.profile else ["named by --device"]
        if self.faults:
            parts.append(f"injects {', '.join(map(str, self.faults))}")
        return "; ".join(parts)


def _pose_reason(named: str, profile: Profile) -> str:
    first = "" if named == profile.name else f"{named} means its first profile, {profile.name}; "
    return (
        f"{first}poses as {profile.title} ({profile.name}, {profile.arch}, "
        f"{format_bytes(profile.memory_bytes)}): kernels, dtype and memory plan are chosen for it, "
        "reference kernels run in host memory"
    )


def parse_null(detail: str) -> NullSpec:
    """Split what followed `null:`; raises ConfigError that lists what exists."""
    if not detail:
        return NullSpec()
    parts = [part.strip() for part in detail.split(",")]
    if "" in parts:
        raise _wrong(detail, "a part is empty")
    is_fault = "@" in parts[0] or parts[0] in _FAULTS
    named = "" if is_fault else parts.pop(0)
    faults = tuple(_fault(detail, part) for part in parts)
    for fault in faults:
        if faults.count(fault) > 1:
            raise _wrong(detail, f"{fault} stands there twice")
    return NullSpec(named=named, profile=find_profile(named) if named else None, faults=faults)


def _fault(detail: str, part: str) -> FaultAt:
    name, at, step = part.partition("@")
    if name not in _FAULTS:
        close = difflib.get_close_matches(name, _FAULTS, n=1)
        hint = f"; did you mean {close[0]}" if close else ""
        what = f"{name!r} is no fault" if at else f"{part!r} is no fault, and a profile comes first"
        raise _wrong(detail, what + hint)
    if not _STEP.fullmatch(step):
        raise _wrong(detail, f"{part}: {step!r} is no step; steps count from 1, 0 is loading")
    if name == Fault.NAN and int(step) == LOADING:
        raise _wrong(detail, "nan@0: nothing is computed while loading; steps count from 1")
    return FaultAt(Fault(name), int(step))


def _wrong(detail: str, what: str) -> ConfigError:
    return ConfigError(
        f"--device null:{detail}: {what}. Write null:PROFILE, null:PROFILE,FAULT@STEP,... or "
        f"null:FAULT@STEP,...; faults: {', '.join(_FAULTS)}"
    )
