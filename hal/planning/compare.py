"""The same question for several devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hal.errors import ConfigError, HalError, MemoryPlanError
from hal.planning.model import PlannedModel, read_planned_model
from hal.planning.plan import plan_for
from hal.planning.report import SCHEMA_VERSION, PlanReport
from hal.planning.settings import PlanSettings
from hal.report import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One device: its report, or the error that kept it from having one."""

    device: str
    report: PlanReport | None
    error: HalError | None

    @property
    def fits(self) -> bool:
        return self.report is not None and self.report.fits

    def as_json(self) -> JsonValue:
        if self.report is not None:
            return {"asked": self.device, **self.report.as_json()}
        assert self.error is not None
        error = {"code": self.error.code, "message": self.error.message}
        return {"asked": self.device, "fits": False, "error": error}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row a device, in the order asked."""

    model: PlannedModel
    settings: PlanSettings
    rows: tuple[Row, ...]

    @property
    def any_fits(self) -> bool:
        return any(row.fits for row in self.rows)

    def as_json(self) -> dict[str, JsonValue]:
        return {"schema": SCHEMA_VERSION, "plans": [row.as_json() for row in self.rows]}


def compare(settings: PlanSettings, devices: Sequence[str]) -> Comparison:
    """Plan for each device; what is wrong with one device is its row, with the model an error."""
    names = [name for name in devices if name]
    if not names:
        raise ConfigError("--compare names no device; write it like h200,mi300x,2xrtx4090")
    model = read_planned_model(settings.model)
    rows = tuple(_row(replace(settings, device=name), model) for name in names)
    return Comparison(model=model, settings=settings, rows=rows)


def _row(settings: PlanSettings, model: PlannedModel) -> Row:
    try:
        return Row(device=settings.device, report=plan_for(settings, model), error=None)
    except (ConfigError, MemoryPlanError) as error:
        return Row(device=settings.device, report=None, error=error)
