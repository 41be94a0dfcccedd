"""The answer to one planning question, as data."""

from __future__ import annotations

from dataclasses import dataclass

from hal.device import MemoryKind
from hal.errors import MemoryPlanError
from hal.memory import MemoryPlan, PlanInputs, format_bytes, memory_budget
from hal.planning.model import PlannedModel
from hal.planning.remedies import Remedy
from hal.planning.roofline import Rate
from hal.planning.settings import PlanSettings
from hal.planning.sizing import Basis, Sized
from hal.planning.target import PlanDevice
from hal.report import JsonValue

# Raised when a key changes its meaning or goes; a new key leaves it alone.
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What fits with these weights; 0 where not even one does."""

    sequences_full: int
    sequences_typical: int
    longest_ctx: int
    longest_ctx_one: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """smallest: the fewest devices of this kind that fit, None where no legal number does.

    reasons: why each smaller legal number does not fit
    """

    used: int
    legal: tuple[int, ...]
    smallest: int | None
    reasons: tuple[str, ...]
    link: str


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the ledger: bytes on one device."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """Whether the model fits, what takes the bytes, how much more fits, and what would help."""

    model: PlannedModel
    settings: PlanSettings
    device: PlanDevice
    sized: Sized
    memory: MemoryPlan | None
    error: MemoryPlanError | None
    capacity: Capacity
    parallel: TensorParallel
    rates: tuple[Rate, ...]
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.error is None

    @property
    def basis(self) -> Basis:
        return self.sized.basis

    @property
    def inputs(self) -> PlanInputs:
        return self.sized.inputs

    @property
    def typical(self) -> int:
        """Tokens of a usual sequence."""
        return self.settings.typical_of(self.sized.resolved.max_model_len)

    @property
    def kv_bytes(self) -> int:
        """The pool, or what it would have to be."""
        if self.memory is not None:
            return self.memory.kv_bytes
        return self.inputs.needed_blocks * self.inputs.kv_bytes_per_block

    def parts(self) -> tuple[Part, ...]:
        """The ledger of one device, in the order of the bar; its sum is total or more."""
        inputs, total = self.inputs, self.inputs.memory.total_bytes
        used = inputs.fixed_bytes + self.kv_bytes
        budget = memory_budget(inputs)
        others = max(0, total - inputs.memory.available_bytes)
        own = inputs.budgeted_bookkeeping_bytes  # a card's is in the host's memory
        return (
            Part("weights", inputs.weights_bytes),
            Part("KV cache", self.kv_bytes),
            Part("activations", inputs.activation_bytes),
            Part("logits", inputs.logits_bytes),
            Part("graphs", inputs.graphs_bytes),
            Part("communicator", inputs.communicator_bytes),
            *([Part("bookkeeping", own)] if own else []),
            Part("not used", max(0, budget - used)),
            Part("left alone", max(0, total - others - max(budget, used))),
            Part("others", others),
        )

    @property
    def is_host(self) -> bool:
        """Whether ranks are processes that share one memory."""
        return self.device.capabilities.memory.kind is MemoryKind.HOST

    def as_json(self) -> dict[str, JsonValue]:
        """Plain JSON types; docs/plan.md names every key."""
        return {
            "schema": SCHEMA_VERSION,
            "model": self._model_json(),
            "device": self._device_json(),
            "settings": self._settings_json(),
            "basis": str(self.basis),
            "fits": self.fits,
            "error": None
            if self.error is None
            else {"code": self.error.code, "message": self.error.message},
            "memory": self._memory_json(),
            "capacity": {
                "sequences_full": self.capacity.sequences_full,
                "sequences_typical": self.capacity.sequences_typical,
                "longest_ctx": self.capacity.longest_ctx,
                "longest_ctx_one": self.capacity.longest_ctx_one,
            },
            "tensor_parallel": {
                "used": self.parallel.used,
                "legal": list(self.parallel.legal),
                "smallest": self.parallel.smallest,
                "reasons": list(self.parallel.reasons),
                "link": self.parallel.link,
            },
            "rates": [rate.as_json() for rate in self.rates],
            "remedies": [_remedy_json(r, self.settings) for r in self.remedies],
            "notes": list(self.notes),
        }

    def _model_json(self) -> dict[str, JsonValue]:
        shape, stored = self.model.shape, self.model.stored
        return {
            "name": self.model.name,
            "model_type": shape.model_type,
            "architecture": shape.architecture,
            "parameters": shape.num_parameters,
            "active_parameters": shape.active_parameters,
            "header_elements": self.model.header_elements,
            "dtype": str(shape.dtype),
            "quantization": None if stored is None else stored.name,
            "max_position_embeddings": shape.max_position_embeddings,
            "can_run": self.model.engine is not None,
        }

    def _device_json(self) -> dict[str, JsonValue]:
        caps = self.device.capabilities
        return {
            "name": self.device.name,
            "title": caps.name,
            "arch": caps.arch,
            "count": self.parallel.used,
            "present": self.device.is_present,
            "kind": self.device.kind,
            "reason": self.device.reason,
            "memory_kind": str(caps.memory.kind),
            "total_bytes": caps.memory.total_bytes,
            "available_bytes": caps.memory.available_bytes,
        }

    def _settings_json(self) -> dict[str, JsonValue]:
        resolved = self.sized.resolved
        return {
            "ctx": resolved.max_model_len,
            "concurrency": self.settings.concurrency or 1,
            "typical": self.typical,
            "kv": self.settings.kv,
            "quantization": self.settings.quantization,
            "dtype": str(resolved.dtype),
            "memory": str(resolved.memory),
            "max_num_seqs": resolved.max_num_seqs,
            "max_num_batched_tokens": resolved.max_num_batched_tokens,
            "block_size": resolved.block_size,
            "reasons": {choice.name: choice.reason for choice in resolved.choices},
        }

    def _memory_json(self) -> dict[str, JsonValue]:
        """Bytes on one device."""
        inputs = self.inputs
        plan = self.memory
        return {
            "budget_bytes": memory_budget(inputs),
            "needed_bytes": inputs.needed_bytes,
            "weights_bytes": inputs.weights_bytes,
            "kv_bytes": self.kv_bytes,
            "activation_bytes": inputs.activation_bytes,
            "logits_bytes": inputs.logits_bytes,
            "graphs_bytes": inputs.graphs_bytes,
            "communicator_bytes": inputs.communicator_bytes,
            "bookkeeping_bytes": inputs.budgeted_bookkeeping_bytes,
            "unused_bytes": 0 if plan is None else plan.unused_bytes,
            "others_bytes": inputs.memory.total_bytes - inputs.memory.available_bytes,
            "kv_bytes_per_token": inputs.kv_bytes_per_block / inputs.block_size,
            "num_blocks": 0 if plan is None else plan.num_blocks,
        }


def _remedy_json(remedy: Remedy, asked: PlanSettings) -> dict[str, JsonValue]:
    """The text, and the settings that it changes."""
    names = ("device", "ctx", "concurrency", "kv", "quantization", "tp", "memory")
    changed = {n: getattr(remedy.settings, n) for n in names}
    return {
        "text": remedy.text,
        "settings": {n: v for n, v in changed.items() if v != getattr(asked, n)},
    }


def shortage(sized: Sized) -> str:
    """By how much one device is too small."""
    missing = sized.inputs.needed_bytes - memory_budget(sized.inputs)
    return f"{format_bytes(missing)} short"
