"""Which kernel runs a problem, and why: registration, pure predicates, selections with reasons.

An `Op` declares a signature; kernels register beside it from `kernels/`. A *site* is an op and a
frozen problem; equal problems share one `Selection`, which keeps the chosen kernel and every
rejected one with its reason. The same data makes error texts, `explain()` and the docs tables.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from hal.device import Capabilities
from hal.errors import ConfigError, SelectionError

if TYPE_CHECKING:
    from hal.binding import Binder


class Level(StrEnum):
    """How a choice runs: on instructions made for it, upcast to others, or as the specification."""

    NATIVE = "native"
    UPCAST = "upcast"
    REFERENCE = "reference"


Rejects = Callable[[Capabilities, Any], str | None]
Unavailable = Callable[[], str | None]
_F = TypeVar("_F", bound=Callable[..., Any])


def never_rejects(_caps: Capabilities, _problem: Any) -> str | None:
    """The predicate of a kernel that runs everywhere."""
    return None


def always_available() -> str | None:
    """A kernel that needs nothing compiled."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Facts a kernel states about itself.

    batch_invariant: the same order of summation at every batch size, split and chunk.
    """

    preference: int
    level: Level = Level.NATIVE
    batch_invariant: bool = False
    rejects: Rejects = never_rejects
    unavailable: Unavailable = always_available


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of an op. `bind(problem, binder)` gives what the caller holds and calls.

    For plain ops that is the function itself; for families an object that owns its layout.
    """

    op: str
    name: str
    traits: Traits
    bind: Callable[[Any, Binder], Any]
    implementation: Callable[..., Any]


class Op:
    """A declared op: name, signature, docstring and problem type, with its registered kernels."""

    def __init__(self, declaration: Callable[..., Any], problem: type) -> None:
        self.name = declaration.__name__
        self.doc = inspect.getdoc(declaration) or ""
        self.problem = problem
        self.parameters = tuple(inspect.signature(declaration).parameters)
        self.kernels: dict[str, Kernel] = {}

    def kernel(self, name: str, **traits: Any) -> Callable[[_F], _F]:
        """Register a function with the declaration's parameters as kernel `name`."""

        def register(function: _F) -> _F:
            given = tuple(inspect.signature(function).parameters)
            if given != self.parameters:
                raise TypeError(f"{self.name}.{name} takes {given}, declared {self.parameters}")
            self._add(Kernel(self.name, name, Traits(**traits), lambda _p, _b: function, function))
            return function

        return register

    def family(self, name: str, **traits: Any) -> Callable[[_F], _F]:
        """Register a class (problem, binder) -> bound object as kernel family `name`."""

        def register(family: _F) -> _F:
            self._add(Kernel(self.name, name, Traits(**traits), family, family))
            return family

        return register

    def _add(self, kernel: Kernel) -> None:
        if kernel.name in self.kernels:
            raise TypeError(f"kernel {kernel.name!r} of op {self.name} is registered twice")
        self.kernels[kernel.name] = kernel


OPS: dict[str, Op] = {}


def declare(problem: type) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op by its signature and docstring: `@declare(NormProblem) def rms_norm(...)`."""

    def register(declaration: Callable[..., Any]) -> Op:
        op = Op(declaration, problem)
        OPS[op.name] = op
        return op

    return register


@dataclass(frozen=True, slots=True)
class Rejection:
    """A kernel that was not chosen, and the reason with the observed value."""

    kernel: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernel chosen for one site, and every other candidate with its reason."""

    op: str
    problem: Any
    kernel: Kernel
    reason: str
    rejected: tuple[Rejection, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "op": self.op,
            "problem": str(self.problem),
            "kernel": self.kernel.name,
            "level": str(self.kernel.traits.level),
            "reason": self.reason,
            "rejected": [{"kernel": r.kernel, "reason": r.reason} for r in self.rejected],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPolicy:
    """User wishes: `overrides` op -> kernel name; strict refuses upcast and reference kernels on
    accelerators; deterministic admits batch-invariant kernels only."""

    overrides: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    deterministic: bool = False


class Selector:
    """Chooses kernels for one device, present or not, and remembers every Selection."""

    def __init__(
        self,
        caps: Capabilities,
        policy: SelectionPolicy | None = None,
        *,
        is_present: bool = True,
    ) -> None:
        self.caps = caps
        self.policy = policy or SelectionPolicy()
        self.is_present = is_present
        self._selections: dict[tuple[str, Any], Selection] = {}
        self._check_overrides()

    def select(self, op: Op, problem: Any) -> Selection:
        """The Selection of this site; raises SelectionError with every reason when none fits."""
        key = (op.name, problem)
        if key not in self._selections:
            self._selections[key] = self._choose(op, problem)
        return self._selections[key]

    def report(self) -> tuple[Selection, ...]:
        """Every Selection made so far, in order."""
        return tuple(self._selections.values())

    def _choose(self, op: Op, problem: Any) -> Selection:
        assert isinstance(problem, op.problem), f"{op.name} takes {op.problem.__name__}"
        wanted = self.policy.overrides.get(op.name)
        # By name where equally preferred: the order of imports must not decide.
        candidates = sorted(op.kernels.values(), key=lambda k: (-k.traits.preference, k.name))
        chosen: Kernel | None = None
        rejected: list[Rejection] = []
        for kernel in candidates:
            reason = self._why_not(kernel, problem)
            if reason is None and wanted is not None and kernel.name != wanted:
                reason = f"--kernel {op.name}={wanted} was given"
            if reason is None and chosen is not None:
                reason = (
                    f"could run; {chosen.name} is preferred "
                    f"({chosen.traits.preference} over {kernel.traits.preference})"
                )
            if reason is None:
                chosen = kernel
            else:
                rejected.append(Rejection(kernel.name, reason))
        if chosen is None:
            raise SelectionError(_nothing_fits(op, problem, self.caps, rejected))
        why = f"--kernel {op.name}={wanted}" if wanted else "highest preference that accepts it"
        return Selection(op.name, problem, chosen, why, tuple(rejected))

    def _why_not(self, kernel: Kernel, problem: Any) -> str | None:
        traits = kernel.traits
        reason = traits.rejects(self.caps, problem)
        if reason is None and self.is_present:
            reason = traits.unavailable()
        if reason is None and self.policy.deterministic and not traits.batch_invariant:
            reason = "--deterministic admits batch-invariant kernels only"
        if reason is None and self._is_refused_by_strict(traits.level):
            reason = f"--strict refuses {traits.level} kernels on an accelerator"
        return reason

    def _is_refused_by_strict(self, level: Level) -> bool:
        return self.policy.strict and self.caps.is_accelerator and level is not Level.NATIVE

    def _check_overrides(self) -> None:
        for op_name, kernel_name in self.policy.overrides.items():
            op = OPS.get(op_name)
            if op is None:
                raise ConfigError(f"--kernel {op_name}=...: no such op; ops: {', '.join(OPS)}")
            if kernel_name not in op.kernels:
                names = ", ".join(op.kernels)
                raise ConfigError(f"--kernel {op_name}={kernel_name}: its kernels are {names}")


def _nothing_fits(op: Op, problem: Any, caps: Capabilities, rejected: list[Rejection]) -> str:
    reasons = "; ".join(f"{r.kernel}: {r.reason}" for r in rejected) or "no kernel is registered"
    return f"no kernel of {op.name} runs {problem} on {caps.name} ({caps.arch}): {reasons}"
