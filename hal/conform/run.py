"""Runs the whole kit on one device: every kernel on every case, then layers and whole models."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import hal.kernels
from hal.conform.engine_model import Loaded, load
from hal.conformance.case import Case
from hal.conformance.cases import cases_by_op
from hal.conformance.layer_checks import layer_record
from hal.conformance.limits import LIMITS
from hal.conformance.model_checks import (
    GRAPHS,
    QUICK_SCHEDULES,
    SCHEDULES,
    ModelJudge,
    ModelRecord,
    graph_record,
    model_records,
)
from hal.conformance.report import LEVELS, Gap, KernelRun, ModelRun, Results, summarise
from hal.conformance.run import Record, conform
from hal.conformance.tiny_models import SHAPES, make_model
from hal.device import Device
from hal.dtypes import DType
from hal.errors import ConfigError, HalError
from hal.select import OPS, Kernel

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformRequest:
    """What to run; everything by default.

    ops, kernels  only these: op names, and NAME or OP=NAME; models are left out then
    is_quick      every kernel and case, but fewer ways to cut the models' text
    num_seeds     how many draws of weights and text each model gets
    """

    ops: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    is_quick: bool = False
    num_seeds: int = 1

    @property
    def is_whole(self) -> bool:
        return not (self.ops or self.kernels or self.is_quick)


def check_names(request: ConformRequest) -> None:
    """Raises ConfigError for an op or kernel that is not registered, with the nearest that is."""
    hal.kernels.register_all()
    for op in request.ops:
        if op not in OPS:
            raise ConfigError(f"--op {op}: no such op{_hint(op, OPS)}; ops: {', '.join(OPS)}")
    for wanted in request.kernels:
        if not any(_is_wanted(kernel, wanted) for kernel in _all_kernels()):
            names = sorted({kernel.name for kernel in _all_kernels()})
            hint = _hint(wanted.rpartition("=")[2], names)
            raise ConfigError(
                f"--kernel {wanted}: no such kernel{hint}; write NAME or OP=NAME; "
                f"names: {', '.join(names)}"
            )
    if not _chosen(request):
        raise ConfigError(
            f"--op {', '.join(request.ops)} has no kernel called {', '.join(request.kernels)}; "
            + "; ".join(f"{op} has {', '.join(OPS[op].kernels)}" for op in request.ops)
        )


def conform_device(device: Device, request: ConformRequest, say: Say = lambda _: None) -> Results:
    """Run what `request` asks for. What a kernel raises is a failed record, not an exception."""
    check_names(request)
    kernels = tuple(_kernel_runs(_chosen(request), device, say))
    models: tuple[ModelRun, ...] = ()
    if not (request.ops or request.kernels):
        models = tuple(_model_runs(device, request, say))
    return Results(
        kernels=kernels,
        models=models,
        gaps=(*_op_gaps(kernels, request), *_model_gaps(models)),
        is_whole=request.is_whole,
    )


def _all_kernels() -> Iterator[Kernel]:
    for op in OPS.values():
        yield from op.kernels.values()


def _is_wanted(kernel: Kernel, wanted: str) -> bool:
    op, _, name = wanted.rpartition("=")
    return kernel.name == name and op in ("", kernel.op)


def _chosen(request: ConformRequest) -> tuple[Kernel, ...]:
    return tuple(
        kernel
        for kernel in _all_kernels()
        if (not request.ops or kernel.op in request.ops)
        and (not request.kernels or any(_is_wanted(kernel, w) for w in request.kernels))
    )


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _kernel_runs(kernels: Iterable[Kernel], device: Device, say: Say) -> Iterator[KernelRun]:
    for kernel in kernels:
        say(f"{kernel.op} {kernel.name}")
        cases = cases_by_op().get(kernel.op, ())
        records = tuple(conform(kernel, case, device) for case in cases)
        summary = summarise("op", kernel.op, kernel.name, records)
        yield KernelRun(kernel, records, summary)


def _op_gaps(runs: tuple[KernelRun, ...], request: ConformRequest) -> Iterator[Gap]:
    """Ops without cases, and cases that no kernel ran; with --kernel, kernels that ran nothing."""
    if request.kernels:
        for run in runs:
            if not run.summary.num_run:
                reason = run.summary.reasons[0] if run.summary.reasons else "the op has no case"
                yield Gap(f"{run.kernel.op} {run.kernel.name}", f"no case ran: {reason}")
        return
    for op in request.ops or tuple(OPS):
        cases = cases_by_op().get(op, ())
        if not cases:
            yield Gap(op, "this op has no conformance case")
        records = [r for run in runs if run.kernel.op == op for r in run.records]
        yield from _case_gaps(op, cases, records)


def _case_gaps(op: str, cases: Iterable[Case], records: list[Record]) -> Iterator[Gap]:
    ran = {record.case for record in records if not record.skipped}
    left = [case.label for case in cases if case.label not in ran]
    if left:
        reasons = dict.fromkeys(f"{r.kernel}: {r.skipped}" for r in records if r.case == left[0])
        why = "; ".join(reasons) or "the op has no kernel"
        yield Gap(f"{op}: {len(left)} cases, such as {left[0]}", f"no kernel runs them: {why}")


def _model_runs(device: Device, request: ConformRequest, say: Say) -> Iterator[ModelRun]:
    for model_type in SHAPES:
        for dtype in LIMITS:
            say(f"model {model_type} in {dtype}")
            records: list[ModelRecord] = []
            kernels: dict[str, str] = {}
            for seed in range(request.num_seeds):
                part = model_run(model_type, dtype, device, request.is_quick, seed)
                records += part.records
                kernels = part.kernels
            yield ModelRun(model_type, str(dtype), tuple(records), kernels)


def model_run(
    model_type: str, dtype: DType, device: Device, is_quick: bool = False, seed: int = 0
) -> ModelRun:
    """One tiny model: its layers one by one, then whole."""
    model = make_model(model_type, dtype, seed)
    try:
        loaded = load(model, device)
    except HalError as error:
        missing = _not_loaded(model_type, dtype, str(error))
        return ModelRun(model_type, str(dtype), missing, {})
    judge = ModelJudge(model, seed)
    records = (
        *_layer_records(loaded, device, judge),
        *_model_records(loaded, judge, is_quick),
        _graph_record(loaded, device, judge),
    )
    return ModelRun(model_type, str(dtype), records, loaded.model.kernels())


def _layer_records(loaded: Loaded, device: Device, judge: ModelJudge) -> Iterator[ModelRecord]:
    for index, layer in enumerate(loaded.layers):
        yield layer_record(layer, index, judge.model, device, judge.seed)


def _model_records(loaded: Loaded, judge: ModelJudge, is_quick: bool) -> Iterator[ModelRecord]:
    schedules = QUICK_SCHEDULES if is_quick else tuple(SCHEDULES)
    invariant = not loaded.model.variant_kernels()
    yield from model_records(loaded.model, judge, schedules, invariant)


def _not_loaded(model_type: str, dtype: DType, reason: str) -> tuple[ModelRecord, ...]:
    """A model that no kernels can run shows nothing, at either level."""
    return tuple(
        ModelRecord(level=level, model=model_type, dtype=str(dtype), case="loading", missing=reason)
        for level in LEVELS
    )


def _graph_record(loaded: Loaded, device: Device, judge: ModelJudge) -> ModelRecord:
    """Replayed steps against eager ones, where the engine replays any."""
    resolved = loaded.resolved
    if resolved.use_graphs:
        eager = load(judge.model, device, enforce_eager=True).model
        is_exact = not (device.capabilities.is_accelerator and loaded.model.variant_kernels())
        return graph_record(loaded.model, eager, judge, loaded.model.num_graphs, is_exact)
    (graphs,) = (choice for choice in resolved.choices if choice.name == "graphs")
    return ModelRecord(
        level="model",
        model=judge.model.shape.model_type,
        dtype=str(resolved.dtype),
        case=GRAPHS,
        skipped=f"not applicable: graphs are off: {graphs.reason}",
    )


def _model_gaps(runs: Iterable[ModelRun]) -> Iterator[Gap]:
    """What could not be made, once for each reason."""
    found: dict[Gap, dict[str, None]] = {}
    for run in runs:
        for record in run.records:
            if record.missing:
                models = found.setdefault(Gap(record.case, record.missing), {})
                models[f"{record.model} {record.dtype}"] = None
    for gap, models in found.items():
        yield Gap(f"{gap.what} ({', '.join(models)})", gap.reason)
