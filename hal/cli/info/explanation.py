"""Which kernel would run each site of a model on a device, and why; nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from hal.assembly import assemble, make_selector, selection_policy
from hal.cli.info.columns import wrapped
from hal.cli.info.target import Target, find_target
from hal.collective import SingleRank
from hal.config import Choice, EngineConfig, ModelLimits, resolve
from hal.engine.model_config import ModelConfig, read_model_config
from hal.engine.models import MODELS
from hal.errors import SelectionError
from hal.evidence import evidence_of
from hal.explain import SiteReport, level_counts, site_reports
from hal.planning.model import config_path
from hal.select import Level

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything `hal-info explain` prints; `error` is set where a site has no kernel."""

    model: ModelConfig
    target: Target
    choices: tuple[Choice, ...]
    sites: tuple[SiteReport, ...]
    error: SelectionError | None

    def as_json(self) -> dict[str, object]:
        caps = self.target.capabilities
        return {
            "schema": SCHEMA_VERSION,
            "model": {
                "model_type": self.model.model_type,
                "architecture": self.model.architecture,
            },
            "device": {
                "spec": self.target.spec,
                "present": self.target.is_present,
                "reason": self.target.reason,
                "vendor": caps.vendor,
                "name": caps.name,
                "arch": caps.arch,
            },
            "choices": [asdict(choice) for choice in self.choices],
            "kernels": [site.as_json() for site in self.sites],
            "error": None
            if self.error is None
            else {
                "code": self.error.code,
                "message": self.error.message,
                "rows": list(self.error.rows),
            },
        }


def explain(config: EngineConfig) -> Explanation:
    """Raises ConfigError and ModelError; a site without a kernel is in the result instead."""
    model = read_model_config(config_path(config.model).parent, MODELS.keys())
    target = find_target(config.device)
    limits = ModelLimits(dtype=model.dtype, max_position_embeddings=model.max_position_embeddings)
    resolved = resolve(config, target.capabilities, limits)
    selector = make_selector(
        target.capabilities, selection_policy(config), is_present=target.is_present
    )
    error: SelectionError | None = None
    try:
        resolved = assemble(model, resolved, selector, SingleRank(), None).resolved
    except SelectionError as raised:
        error = raised
    return Explanation(
        model=model,
        target=target,
        choices=resolved.choices,
        sites=site_reports(selector, evidence_of),
        error=error,
    )


def render(explanation: Explanation) -> str:
    """For people: settings, sites coarsest first, and a count of the levels."""
    return "\n".join(_lines(explanation))


def _lines(explanation: Explanation) -> Iterator[str]:
    caps, target = explanation.target.capabilities, explanation.target
    yield f"{explanation.model.model_type} on {caps.name}, {caps.arch} ({target.spec})"
    yield wrapped(f"  {target.reason}")
    for choice in explanation.choices:
        yield wrapped(f"  {choice.name} {choice.value}: {choice.reason}")
    for site in explanation.sites:
        yield ""
        for line in site.lines():
            yield wrapped(line)
    yield ""
    yield wrapped(summary(explanation.sites))


def summary(sites: tuple[SiteReport, ...]) -> str:
    """How many sites run on which level, and what --strict would refuse."""
    counts = level_counts(sites)
    text = f"{len(sites)} sites: " + ", ".join(f"{n} {level}" for level, n in counts.items())
    weak = sorted({site.op for site in sites if site.level is not Level.NATIVE})
    return f"{text}. Not native: {', '.join(weak)}" if weak else text
