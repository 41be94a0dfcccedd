"""Selection: the preferred kernel that accepts, and a reason for every other one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hal.binding import Arena, Binder
from hal.device import Capabilities, Feature, Memory, MemoryKind
from hal.dtypes import DType
from hal.errors import ConfigError, SelectionError
from hal.select import (
    OPS,
    Level,
    Op,
    Rejection,
    Rule,
    SelectionPolicy,
    Selector,
    declare,
)

CPU = Capabilities(
    vendor="intel",
    name="a CPU",
    arch="x86_avx2",
    memory=Memory(kind=MemoryKind.HOST, total_bytes=1 << 34, available_bytes=1 << 33),
    compute_units=2,
    simd_width=8,
    features=frozenset({Feature.AVX2}),
    is_accelerator=False,
)
CARD = replace(CPU, vendor="nvidia", name="a card", arch="sm_90", is_accelerator=True)


@dataclass(frozen=True, slots=True)
class ShoutProblem:
    width: int


def needs_avx512(caps: Capabilities, _problem: ShoutProblem) -> str | None:
    if Feature.AVX512 not in caps.features:
        return f"needs avx512; this device has {caps.feature_names()}"
    return None


def needs_narrow(_caps: Capabilities, problem: ShoutProblem) -> str | None:
    return f"at most 64 wide; width is {problem.width}" if problem.width > 64 else None


def not_compiled() -> str | None:
    return "the compiled module is missing"


@pytest.fixture
def shout() -> Iterator[Op]:
    """An op with kernels of every kind; forgotten afterwards."""

    @declare(ShoutProblem)
    def shout(text: str, out: list[str]) -> None:
        """out gets the text in capitals."""

    @shout.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
    def slow(text: str, out: list[str]) -> None:
        out.append(text.upper())

    @shout.kernel("wide", preference=90, rejects=needs_avx512)
    def wide(text: str, out: list[str]) -> None:
        out.append(text.upper())

    @shout.kernel("narrow", preference=50, rejects=needs_narrow)
    def narrow(text: str, out: list[str]) -> None:
        out.append(text.upper())

    @shout.kernel("compiled", preference=70, batch_invariant=True, unavailable=not_compiled)
    def compiled(text: str, out: list[str]) -> None:
        out.append(text.upper())

    @shout.kernel("upcast", preference=20, level=Level.UPCAST)
    def upcast(text: str, out: list[str]) -> None:
        out.append(text.upper())

    yield shout
    del OPS["shout"]


def test_the_preferred_kernel_that_accepts_is_chosen_and_all_others_have_reasons(
    shout: Op,
) -> None:
    selection = Selector(CPU).select(shout, ShoutProblem(32))
    assert selection.kernel.name == "narrow"
    assert selection.reason == "highest preference that accepts it"
    assert selection.rejected == (
        Rejection("wide", Rule.PROBLEM, "needs avx512; this device has avx2"),
        Rejection("compiled", Rule.UNAVAILABLE, "the compiled module is missing"),
        Rejection("upcast", Rule.PREFERENCE, "could run; narrow is preferred (50 over 20)"),
        Rejection("reference", Rule.PREFERENCE, "could run; narrow is preferred (50 over 0)"),
    )


def test_a_reason_tells_the_observed_value(shout: Op) -> None:
    selection = Selector(CPU).select(shout, ShoutProblem(100))
    assert selection.kernel.name == "upcast"
    assert Rejection("narrow", Rule.PROBLEM, "at most 64 wide; width is 100") in selection.rejected


def test_the_predicate_sees_the_device(shout: Op) -> None:
    new = replace(CPU, features=frozenset({Feature.AVX512}))
    assert Selector(new).select(shout, ShoutProblem(32)).kernel.name == "wide"


def test_an_absent_device_is_not_asked_what_is_compiled_here(shout: Op) -> None:
    planned = Selector(CPU, is_present=False).select(shout, ShoutProblem(32))
    assert planned.kernel.name == "compiled"


def test_equal_problems_share_one_selection(shout: Op) -> None:
    selector = Selector(CPU)
    first = selector.select(shout, ShoutProblem(32))
    assert selector.select(shout, ShoutProblem(32)) is first
    other = selector.select(shout, ShoutProblem(100))
    assert other is not first
    assert selector.report() == (first, other)


def test_an_override_is_used_and_named(shout: Op) -> None:
    policy = SelectionPolicy(overrides={"shout": "reference"})
    selection = Selector(CPU, policy).select(shout, ShoutProblem(32))
    assert selection.kernel.name == "reference"
    assert selection.reason == "--kernel shout=reference"
    assert (
        Rejection("narrow", Rule.OVERRIDE, "--kernel shout=reference was given")
        in selection.rejected
    )
    assert (
        Rejection("wide", Rule.PROBLEM, "needs avx512; this device has avx2") in selection.rejected
    )


def test_an_override_that_cannot_run_is_an_error_with_its_reason(shout: Op) -> None:
    policy = SelectionPolicy(overrides={"shout": "wide"})
    with pytest.raises(SelectionError) as caught:
        Selector(CPU, policy).select(shout, ShoutProblem(32))
    assert "wide: needs avx512; this device has avx2" in str(caught.value)
    assert "narrow: --kernel shout=wide was given" in str(caught.value)


def test_an_override_of_nothing_is_refused_at_once(shout: Op) -> None:
    with pytest.raises(ConfigError, match="no such op; ops: .*shout"):
        Selector(CPU, SelectionPolicy(overrides={"whisper": "reference"}))
    with pytest.raises(ConfigError, match="its kernels are reference, wide, narrow"):
        Selector(CPU, SelectionPolicy(overrides={"shout": "loud"}))


def test_strict_refuses_upcast_and_reference_on_an_accelerator_only(shout: Op) -> None:
    strict = SelectionPolicy(strict=True)
    with pytest.raises(SelectionError) as caught:
        Selector(CARD, strict).select(shout, ShoutProblem(100))
    assert "upcast: --strict refuses upcast kernels on an accelerator" in str(caught.value)
    assert "reference: --strict refuses reference kernels" in str(caught.value)
    assert Selector(CARD, strict).select(shout, ShoutProblem(32)).kernel.name == "narrow"
    assert Selector(CPU, strict).select(shout, ShoutProblem(100)).kernel.name == "upcast"


def test_deterministic_admits_batch_invariant_kernels_only(shout: Op) -> None:
    selection = Selector(CPU, SelectionPolicy(deterministic=True)).select(shout, ShoutProblem(32))
    assert selection.kernel.name == "reference"
    why = "--deterministic admits batch-invariant kernels only"
    assert Rejection("narrow", Rule.DETERMINISTIC, why) in selection.rejected


def test_when_nothing_fits_the_error_lists_every_reason(shout: Op) -> None:
    del shout.kernels["reference"], shout.kernels["upcast"]
    with pytest.raises(SelectionError) as caught:
        Selector(CPU).select(shout, ShoutProblem(100))
    message = str(caught.value)
    assert "no kernel of shout runs width 100 on a CPU (x86_avx2)" in message
    assert "wide: needs avx512; this device has avx2" in message
    assert "compiled: the compiled module is missing" in message
    assert "narrow: at most 64 wide; width is 100" in message


def test_an_op_without_kernels_says_so(shout: Op) -> None:
    shout.kernels.clear()
    with pytest.raises(SelectionError, match="no kernel is registered"):
        Selector(CPU).select(shout, ShoutProblem(1))


def test_equal_preferences_are_decided_by_name_not_by_import_order(shout: Op) -> None:
    shout.kernels.clear()
    for name in ("zebra", "ant", "mole"):
        shout.kernel(name, preference=5)(lambda text, out: None)
    assert Selector(CPU).select(shout, ShoutProblem(1)).kernel.name == "ant"


def test_a_kernel_with_another_signature_is_refused_at_registration(shout: Op) -> None:
    with pytest.raises(TypeError, match=r"shout.loud takes \('text',\), declared \('text', 'out'"):

        @shout.kernel("loud", preference=1)
        def loud(text: str) -> None: ...

    assert "loud" not in shout.kernels


def test_a_name_is_registered_once(shout: Op) -> None:
    with pytest.raises(TypeError, match="'narrow' of op shout is registered twice"):
        shout.kernel("narrow", preference=1)(lambda text, out: None)


def test_every_rule_names_the_flag_that_admits_the_kernel() -> None:
    flags = {rule: Rejection("loud", rule, "why").flag("shout") for rule in Rule}
    assert flags == {
        Rule.PROBLEM: "",
        Rule.UNAVAILABLE: "",
        Rule.DETERMINISTIC: "without --deterministic",
        Rule.STRICT: "without --strict",
        Rule.OVERRIDE: "without --kernel",
        Rule.PREFERENCE: "--kernel shout=loud",
    }


def test_a_level_may_depend_on_the_device(shout: Op) -> None:
    def level(caps: Capabilities, problem: ShoutProblem) -> Level:
        return Level.NATIVE if caps.is_accelerator else Level.UPCAST

    shout.kernels.clear()
    shout.kernel("either", preference=1, level=level)(lambda text, out: None)
    problem = ShoutProblem(1)
    assert Selector(CARD).select(shout, problem).level is Level.NATIVE
    assert Selector(CPU).select(shout, problem).level is Level.UPCAST


def test_strict_refuses_what_is_upcast_on_this_accelerator_and_says_the_cost(shout: Op) -> None:
    shout.kernels.clear()
    shout.kernel("slow", preference=1, level=lambda c, p: Level.UPCAST, cost="8 x slower")(
        lambda text, out: None
    )
    with pytest.raises(SelectionError) as caught:
        Selector(CARD, SelectionPolicy(strict=True)).select(shout, ShoutProblem(1))
    row = (
        "not slow (--strict): --strict refuses upcast kernels on an accelerator (8 x slower) "
        "-> without --strict"
    )
    assert caught.value.rows == (row,)
    assert "--strict refuses upcast kernels on an accelerator (8 x slower)" in caught.value.message


def test_uses_of_a_site_are_counted(shout: Op) -> None:
    selector = Selector(CPU)
    for width in (32, 32, 64, 32):
        selector.select(shout, ShoutProblem(width))
    assert [selector.num_uses(s) for s in selector.report()] == [3, 1]


class BoundShout:
    def __init__(self, problem: ShoutProblem, binder: Binder) -> None:
        self.problem = problem
        self.buffer = binder.arena.buffer("shout", problem.width, DType.FLOAT32)


def test_bind_makes_an_object_per_site_and_shared_one_per_problem(shout: Op) -> None:
    shout.kernels.clear()
    shout.family("object", preference=1)(BoundShout)
    binder = Binder(Selector(CPU), Arena(max_tokens=10), None)
    first: Any = binder.bind(shout, ShoutProblem(4))
    second: Any = binder.bind(shout, ShoutProblem(4))
    assert first is not second
    assert binder.shared(shout, ShoutProblem(4)) is binder.shared(shout, ShoutProblem(4))
    assert binder.shared(shout, ShoutProblem(4)) is not binder.shared(shout, ShoutProblem(5))
    # Equal declarations share memory: layers run one after the other.
    assert first.buffer is second.buffer
    assert binder.arena.num_bytes == 10 * 4 * 4 + 10 * 5 * 4


def test_planning_for_an_absent_device_never_reaches_for_it() -> None:
    binder = Binder(Selector(CPU, is_present=False), Arena(max_tokens=10), None)
    with pytest.raises(AssertionError, match="absent device"):
        _ = binder.device
    with pytest.raises(AssertionError, match="not allocated yet"):
        binder.arena.buffer("x", 4, DType.FLOAT32).rows(1)
