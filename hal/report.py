"""What the probe found: every device, present or not, and why. Data only; goes through JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from hal.device import Capabilities, Feature, Limits, Memory, MemoryKind, Versions

JsonValue: TypeAlias = (
    "str | int | float | bool | None | Sequence[JsonValue] | Mapping[str, JsonValue]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One device, or one vendor without any.

    spec: what `--device` takes for it, "cuda:0"; the vendor alone where no device was found
    capabilities: None if nothing answered
    reason: why it cannot be used, "" if it can
    remedy: the command or step that would change that, "" if there is none
    note: what of the driver's answer was corrected, "" if nothing
    card: what tells this card from all others, "UUID ..." or a PCI address; "" where unknown
    """

    spec: str
    capabilities: Capabilities | None = None
    reason: str = ""
    remedy: str = ""
    note: str = ""
    card: str = ""

    @property
    def is_usable(self) -> bool:
        return self.capabilities is not None and not self.reason

    def as_json(self) -> dict[str, JsonValue]:
        caps = self.capabilities
        return {
            "device": self.spec,
            "usable": self.is_usable,
            "reason": self.reason,
            "remedy": self.remedy,
            "note": self.note,
            "card": self.card,
            "capabilities": None if caps is None else capabilities_as_json(caps),
        }

    @classmethod
    def from_json(cls, data: JsonValue) -> DeviceReport:
        """The report that `as_json` wrote; raises ValueError on anything else."""
        try:
            fields = _mapping(data)
            caps = fields["capabilities"]
            return cls(
                spec=str(fields["device"]),
                capabilities=None if caps is None else capabilities_from_json(_mapping(caps)),
                reason=str(fields["reason"]),
                remedy=str(fields["remedy"]),
                note=str(fields["note"]),
                card=str(fields["card"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a device report: {error}") from error


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Everything one look at the machine found, best device first within each vendor."""

    devices: tuple[DeviceReport, ...]

    def usable(self) -> tuple[DeviceReport, ...]:
        return tuple(d for d in self.devices if d.is_usable)

    def of_vendor(self, vendor: str) -> tuple[DeviceReport, ...]:
        """The reports of `vendor` as written in a device spec: "cuda" has "cuda:0", "cuda:1"."""
        return tuple(d for d in self.devices if d.spec.partition(":")[0] == vendor)


def capabilities_as_json(caps: Capabilities) -> dict[str, JsonValue]:
    """Plain JSON types; `capabilities_from_json` takes it back."""
    return {
        **asdict(caps),
        "features": sorted(str(f) for f in caps.features),
        "links": list(caps.links),
    }


def capabilities_from_json(data: Mapping[str, JsonValue]) -> Capabilities:
    """The Capabilities that `capabilities_as_json` wrote; raises ValueError on anything else."""
    try:
        fields = dict(data)
        memory = dict(_mapping(fields.pop("memory")))
        memory["kind"] = MemoryKind(str(memory["kind"]))
        for name in ("total_bytes", "available_bytes"):
            if type(memory[name]) is not int:  # JSON also has 1.5, true, "much" and NaN
                raise TypeError(f"{name} is {memory[name]!r}, not a number of bytes")
        limits = _mapping(fields.pop("limits"))
        versions = _mapping(fields.pop("versions"))
        features, links = fields.pop("features"), fields.pop("links")
        if not isinstance(features, list):
            raise TypeError("features is not a list")
        if not isinstance(links, list):
            raise TypeError("links is not a list")
        return Capabilities(
            memory=Memory(**memory),  # type: ignore[arg-type]  # the dataclass checks the names
            limits=Limits(**limits),  # type: ignore[arg-type]
            versions=Versions(**versions),  # type: ignore[arg-type]
            features=frozenset(Feature(str(name)) for name in features),
            links=tuple(str(link) for link in links),
            **fields,  # type: ignore[arg-type]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the capabilities of a device: {error}") from error


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, got {value!r}")
    return value
