"""`hal.plan()`: whether a model fits devices that need not be there, by start-up's own sums."""

from __future__ import annotations

from dataclasses import replace

from hal.aliases import nearest
from hal.device import MemoryKind
from hal.errors import ConfigError, MemoryPlanError
from hal.memory import memory_budget, plan_memory, shortfall
from hal.planning.model import PlannedModel, read_planned_model
from hal.planning.notes import notes
from hal.planning.parallel import check_tp, legal_tp
from hal.planning.remedies import Remedies, Remedy
from hal.planning.report import Capacity, PlanReport, TensorParallel, shortage
from hal.planning.roofline import Rate, Roofline
from hal.planning.search import (
    fits,
    longest_context,
    most_sequences,
    smallest_tp,
)
from hal.planning.settings import PlanSettings
from hal.planning.sizing import Sized, Sizer
from hal.planning.target import PlanDevice, find_device


def plan(model: str, **settings: object) -> PlanReport:
    """Whether `model` fits, what takes the bytes, and what would help if it does not.

    settings: the fields of PlanSettings, e.g. device="2xmi300x", ctx=8192, concurrency=64.
    What does not fit is a report whose `fits` is False and which has remedies; settings that
    contradict the model raise ConfigError, an unreadable model ModelError.
    """
    known = PlanSettings.__dataclass_fields__
    for name in settings:
        if name not in known:
            guess = nearest(name, known)
            raise ConfigError(
                f"unknown setting {name}; "
                + (f"did you mean {guess}?" if guess else f"known: {', '.join(known)}")
            )
    return plan_for(PlanSettings(model=model, **settings))  # type: ignore[arg-type]  # checked there


def plan_for(settings: PlanSettings, model: PlannedModel | None = None) -> PlanReport:
    """`plan()` of settings that were made already; `model`, where it was read already."""
    device = find_device(settings.device)
    model = model or read_planned_model(settings.model)
    _check_context(settings, model)
    settings = replace(settings, tp=_num_ranks(settings, device, model))
    sizer = Sizer(model)
    sized = sizer.size(settings, device, is_exact=True)
    error = None
    if not sized.fits:
        error = MemoryPlanError(shortfall(sized.inputs, memory_budget(sized.inputs)))
    remedies = Remedies(sizer, settings, device).found() if error else ()
    question = _Question(sizer, settings, device, sized)
    capacity = question.capacity()
    return PlanReport(
        model=model,
        settings=settings,
        device=device,
        sized=sized,
        memory=None if error else plan_memory(sized.inputs),
        error=_with_remedies(error, remedies),
        capacity=capacity,
        parallel=question.parallel(),
        rates=question.rates(capacity),
        remedies=remedies,
        notes=notes(sizer, settings, device, sized),
    )


def _check_context(settings: PlanSettings, model: PlannedModel) -> None:
    """In the words of this command; raises ConfigError before any size is known."""
    limit = model.shape.max_position_embeddings
    for name, value in (("ctx", settings.ctx), ("typical", settings.typical)):
        if value is not None and value > limit:
            raise ConfigError(
                f"--{name} {value} is above the model's context of {limit} tokens; lower it to "
                f"{limit} or less"
            )


def _num_ranks(settings: PlanSettings, device: PlanDevice, model: PlannedModel) -> int:
    """--tp, else as many as --device names; raises ConfigError for numbers that cannot be."""
    tp = settings.tp or device.count
    if device.is_counted and tp > device.count:
        raise ConfigError(
            f"--tp {tp} needs {tp} devices, but --device {settings.device} names {device.count}"
        )
    if device.count > 1 and device.capabilities.memory.kind is MemoryKind.HOST:
        raise ConfigError(
            f"{device.count} of {device.name} are one machine with one memory; leave the count "
            f"out, and for ranks that share it add --tp {device.count}"
        )
    check_tp(model.shape, tp)
    return tp


def _with_remedies(
    error: MemoryPlanError | None, remedies: tuple[Remedy, ...]
) -> MemoryPlanError | None:
    if error is None:
        return None
    if not remedies:
        return MemoryPlanError(f"{error.message}. No setting and no known device makes it fit")
    texts = "; or ".join(remedy.text for remedy in remedies)
    return MemoryPlanError(f"{error.message}. To make it fit: {texts}")


class _Question:
    """One question with its sizes, asked from all sides."""

    def __init__(
        self, sizer: Sizer, settings: PlanSettings, device: PlanDevice, sized: Sized
    ) -> None:
        self._sizer = sizer
        self._settings = settings
        self._device = device
        self._sized = sized

    @property
    def _typical(self) -> int:
        return self._settings.typical_of(self._sized.resolved.max_model_len)

    def capacity(self) -> Capacity:
        ask = (self._sizer, self._settings, self._device)
        one = (self._sizer, replace(self._settings, concurrency=None), self._device)
        limit = self._sizer.model.shape.max_position_embeddings
        if not self._sized.pools:  # nothing is remembered, so nothing limits it
            return Capacity(
                sequences_full=0, sequences_typical=0, longest_ctx=limit, longest_ctx_one=limit
            )
        return Capacity(
            sequences_full=most_sequences(*ask),
            sequences_typical=most_sequences(*ask, length=self._typical),
            longest_ctx=longest_context(*ask, limit),
            longest_ctx_one=longest_context(*one, limit),
        )

    def parallel(self) -> TensorParallel:
        used = self._settings.tp or 1
        shape = self._sizer.model.shape
        if self._device.capabilities.memory.kind is MemoryKind.HOST:
            return self._host_ranks(used)
        legal = legal_tp(shape)
        smallest = smallest_tp(self._sizer, self._settings, self._device)
        smaller = [tp for tp in legal if smallest is None or tp < smallest]
        link = self._device.link_between(used) if used > 1 else None
        return TensorParallel(
            used=used,
            legal=legal,
            smallest=smallest,
            reasons=tuple(self._why_not(tp) for tp in smaller),
            link="" if link is None else link.kind,
        )

    def _host_ranks(self, used: int) -> TensorParallel:
        """They share one memory, so more of them hold no more."""
        is_enough = fits(self._sizer, replace(self._settings, tp=1), self._device)
        return TensorParallel(
            used=used,
            legal=(1,) if used == 1 else legal_tp(self._sizer.model.shape),
            smallest=1 if is_enough else None,
            reasons=() if is_enough else (self._why_not(1),),
            link="",
        )

    def _why_not(self, tp: int) -> str:
        sized = self._sizer.size(replace(self._settings, tp=tp), self._device)
        return f"{tp}: {shortage(sized)} a device"

    def rates(self, capacity: Capacity) -> tuple[Rate, ...]:
        """Upper bounds for one sequence, and for as many as run at once; none without a profile."""
        profile, sized = self._device.profile, self._sized
        if profile is None or not sized.pools or not sized.fits:
            return ()
        roofline = Roofline(
            model=self._sizer.model,
            settings=self._settings,
            device=self._device,
            profile=profile,
            sized=sized,
        )
        most = min(sized.resolved.max_num_seqs, capacity.sequences_typical)
        many = self._settings.concurrency or most
        wanted = [roofline.prefill(self._typical), roofline.decode(1, self._typical)]
        if many > 1:
            wanted.append(roofline.decode(many, self._typical))
        return tuple(rate for rate in wanted if rate is not None)
