"""Which kernel runs a problem, and why: registration, pure predicates, selections with reasons.

An `Op` declares a signature; kernels register beside it from `kernels/`. A *site* is an op and a
frozen problem; equal problems share one `Selection`, which keeps the chosen kernel and every
rejected one with its reason. The same data makes error texts, `explain()` and the docs tables.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from hal.device import Capabilities
from hal.errors import ConfigError, SelectionError
from hal.problem import describe
from hal.weights import UNQUANTIZED, WEIGHT_FORMATS

if TYPE_CHECKING:
    from hal.binding import Binder


class Level(StrEnum):
    """How a choice runs: on instructions made for it, upcast to others, or as the specification."""

    NATIVE = "native"
    UPCAST = "upcast"
    REFERENCE = "reference"


class Rule(StrEnum):
    """Which rule kept a kernel from being chosen."""

    PROBLEM = "cannot run"
    UNAVAILABLE = "not available"
    DETERMINISTIC = "--deterministic"
    STRICT = "--strict"
    OVERRIDE = "--kernel"
    PREFERENCE = "less preferred"


@dataclass(frozen=True, slots=True)
class Regime:
    """How a kernel runs steps of first to last tokens; last None: every longer step as well."""

    first: int
    last: int | None
    how: str

    def __str__(self) -> str:
        if self.last is None:
            tokens = f"{self.first} and more tokens"
        else:
            tokens = f"{self.first} to {self.last} tokens" if self.last > self.first else "1 token"
        return f"{tokens}: {self.how}"


Rejects = Callable[[Capabilities, Any], str | None]
Unavailable = Callable[[], str | None]
LevelOf = Callable[[Capabilities, Any], Level]
IsInvariant = Callable[[Any], bool]
IsCapturable = Callable[[Capabilities], bool]
RegimesOf = Callable[[Any], tuple[Regime, ...]]
_F = TypeVar("_F", bound=Callable[..., Any])


def never_rejects(_caps: Capabilities, _problem: Any) -> str | None:
    """The predicate of a kernel that runs everywhere."""
    return None


def always_available() -> str | None:
    """A kernel that needs nothing compiled."""
    return None


def on_accelerators(caps: Capabilities) -> bool:
    """Of kernels that only an accelerator's stream can record."""
    return caps.is_accelerator


def one_regime(_problem: Any) -> tuple[Regime, ...]:
    """A kernel that treats every number of tokens alike."""
    return (Regime(1, None, "the same code"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Facts a kernel states about itself.

    level: one for all, or a function of device and problem
    cost: what upcast and reference kernels cost against a native one, in a few words
    batch_invariant: the same order of summation at every batch size, split and chunk; one answer
        for all, or a function of the problem
    capturable: Device.capture can record it: it reads nothing on the host but shapes, and all that
        changes from step to step lies behind the addresses that it was given; one answer for all
        devices, or a function of the device
    """

    preference: int
    level: Level | LevelOf = Level.NATIVE
    cost: str = ""
    regimes: RegimesOf = one_regime
    batch_invariant: bool | IsInvariant = False
    capturable: bool | IsCapturable = False
    rejects: Rejects = never_rejects
    unavailable: Unavailable = always_available

    def is_batch_invariant(self, problem: Any) -> bool:
        claim = self.batch_invariant
        return claim if isinstance(claim, bool) else claim(problem)

    def is_capturable(self, caps: Capabilities) -> bool:
        claim = self.capturable
        return claim if isinstance(claim, bool) else claim(caps)

    def level_on(self, caps: Capabilities, problem: Any) -> Level:
        """How this kernel runs `problem` on a device that it accepts."""
        return self.level if isinstance(self.level, Level) else self.level(caps, problem)


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

HIGHEST_PREFERENCE = "highest preference that accepts it"


def declare(problem: type) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op by its signature and docstring: `@declare(NormProblem) def rms_norm(...)`."""

    def register(declaration: Callable[..., Any]) -> Op:
        op = Op(declaration, problem)
        OPS[op.name] = op
        return op

    return register


@dataclass(frozen=True, slots=True)
class Rejection:
    """A kernel that was not chosen: the rule, and the reason with the observed value."""

    kernel: str
    rule: Rule
    reason: str

    def line(self, op: str) -> str:
        """The row of every report and error: kernel, rule, reason, and the flag that changes it."""
        flag = self.flag(op)
        change = f" -> {flag}" if flag else ""
        return f"not {self.kernel} ({self.rule}): {self.reason}{change}"

    def flag(self, op: str) -> str:
        """The change of flags that would admit it; "" where none can."""
        match self.rule:
            case Rule.PREFERENCE:
                return f"--kernel {op}={self.kernel}"
            case Rule.DETERMINISTIC | Rule.STRICT | Rule.OVERRIDE:
                return f"without {self.rule}"
            case Rule.PROBLEM | Rule.UNAVAILABLE:
                return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The kernel chosen for one site, how it runs, and every other candidate with its reason."""

    op: str
    problem: Any
    kernel: Kernel
    level: Level
    reason: str
    rejected: tuple[Rejection, ...]


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
        self._uses: Counter[tuple[str, Any]] = Counter()
        self._check_overrides()

    def select(self, op: Op, problem: Any) -> Selection:
        """The Selection of this site; raises SelectionError with every reason when none fits."""
        key = (op.name, problem)
        if key not in self._selections:
            self._selections[key] = self._choose(op, problem)
        self._uses[key] += 1
        return self._selections[key]

    def num_uses(self, selection: Selection) -> int:
        """How often this site was selected: the places of the model that share it."""
        return self._uses[selection.op, selection.problem]

    def running_formats(self, op: Op, problem: Any, *, natively: bool = False) -> tuple[str, ...]:
        """What --quantization could be for a kernel of `op` to run here; () for ops of no weight.

        natively: as native kernels only.
        """
        if getattr(problem, "weights", None) is None:
            return ()
        return tuple(
            name
            for name in (UNQUANTIZED, *WEIGHT_FORMATS)
            for changed in (replace(problem, weights=WEIGHT_FORMATS.get(name)),)
            if any(self._may_run(k, changed, natively=natively) for k in op.kernels.values())
        )

    def _may_run(self, kernel: Kernel, problem: Any, *, natively: bool) -> bool:
        if self.policy.overrides.get(kernel.op, kernel.name) != kernel.name:
            return False
        if self._refused(kernel, problem) is not None:
            return False
        return not natively or kernel.traits.level_on(self.caps, problem) is Level.NATIVE

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
            rejection = self._refused(kernel, problem) or self._outranked(kernel, wanted, chosen)
            if rejection is None:
                chosen = kernel
            else:
                rejected.append(rejection)
        if chosen is None:
            formats = self.running_formats(op, problem)
            raise SelectionError(
                _nothing_fits(op, problem, self.caps, rejected)
                + (f"; --quantization that runs here: {', '.join(formats)}" if formats else ""),
                rows=tuple(rejection.line(op.name) for rejection in rejected),
            )
        return Selection(
            op=op.name,
            problem=problem,
            kernel=chosen,
            level=chosen.traits.level_on(self.caps, problem),
            reason=f"--kernel {op.name}={wanted}" if wanted else HIGHEST_PREFERENCE,
            rejected=tuple(rejected),
        )

    def _refused(self, kernel: Kernel, problem: Any) -> Rejection | None:
        """Why this kernel may not run here at all."""
        traits, name = kernel.traits, kernel.name
        if reason := traits.rejects(self.caps, problem):
            return Rejection(name, Rule.PROBLEM, reason)
        if self.is_present and (reason := traits.unavailable()):
            return Rejection(name, Rule.UNAVAILABLE, reason)
        if self.policy.deterministic and not traits.is_batch_invariant(problem):
            return Rejection(
                name,
                Rule.DETERMINISTIC,
                "--deterministic admits batch-invariant kernels only",
            )
        level = traits.level_on(self.caps, problem)
        if self.policy.strict and self.caps.is_accelerator and level is not Level.NATIVE:
            cost = f" ({traits.cost})" if traits.cost else ""
            return Rejection(
                name, Rule.STRICT, f"--strict refuses {level} kernels on an accelerator{cost}"
            )
        return None

    def _outranked(
        self, kernel: Kernel, wanted: str | None, chosen: Kernel | None
    ) -> Rejection | None:
        """Why a kernel that could run does not."""
        if wanted is not None and kernel.name != wanted:
            return Rejection(kernel.name, Rule.OVERRIDE, f"--kernel {kernel.op}={wanted} was given")
        if chosen is None:
            return None
        return Rejection(
            kernel.name,
            Rule.PREFERENCE,
            f"could run; {chosen.name} is preferred "
            f"({chosen.traits.preference} over {kernel.traits.preference})",
        )

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
    return (
        f"no kernel of {op.name} runs {describe(problem)} on {caps.name} ({caps.arch}): {reasons}"
    )
