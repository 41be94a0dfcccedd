"""Arms in real child processes: interleaved rounds, a reason for every failure, all rows kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from peers import environments, session
from peers.cases import CASES, Work
from peers.child import ArmFailure, Child
from peers.protocol import Document, Settings

TINY = Path(__file__).resolve().parents[2] / "hal" / "tiny"

# Notes its name at every run; fails at the command, or for the format, that is named after "-".
ARM = """
import pathlib, sys, time
from peers.protocol import Facts, Generated, NotSupportedError, serve

print("a library's own words")

class Fake:
    def __init__(self, settings):
        self.notes = settings.cache / "notes"
        if settings.weights == "int8":
            raise NotSupportedError("not supported yet: int8")
    def facts(self):
        return Facts("fake 1", 100, 16, 16)
    def prepare(self, case):
        pass
    def run(self, work):
        if "{fails_at}" == "run":
            raise ValueError("the kernel is gone")
        if "{fails_at}" == "sleep":
            time.sleep(60)
        with self.notes.open("a") as notes:
            notes.write("{name} " + str(work[0].num_output) + chr(10))
        return Generated(0.5, 1.5, 64, [[5] * w.num_output for w in work])
    def log_likelihood(self, document):
        return -0.5 * (len(document.ids) - document.start)

serve(Fake)
"""


@pytest.fixture
def fake_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ours, transformers and llama.cpp are fakes (the last one breaks); openvino is missing."""
    recipes = dict(environments.RECIPES)
    for arm, fails_at in (("ours", ""), ("transformers", ""), ("llama.cpp", "run")):
        module = f"fake_{arm.replace('.', '_')}"
        text = ARM.replace("{name}", arm).replace("{fails_at}", fails_at)
        (tmp_path / f"{module}.py").write_text(text)
        recipes[arm] = environments.Recipe(module)
    monkeypatch.setattr(environments, "RECIPES", recipes)

    def python_of(cache: Path, arm: str) -> Path:
        if arm == "openvino":
            raise environments.EnvironmentFailure("not installed")
        return Path(sys.executable)

    monkeypatch.setattr(environments, "python_of", python_of)
    monkeypatch.setattr("peers.child._environ", lambda arm, threads: environ_with(tmp_path))
    return tmp_path


def environ_with(folder: Path) -> dict[str, str]:
    benchmarks = Path(session.__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": f"{benchmarks}{os.pathsep}{folder}"}


def plan(cache: Path, *arms: str, weights: tuple[str, ...] = ("bf16",)) -> session.Plan:
    return session.Plan(
        arms=tuple(session.Contender(*arm.split("@")) for arm in arms),
        cases=(CASES["decode-1"],),
        weights=weights,
        shape="warm-up",
        pairs=3,
        threads=1,
        timeout_s=30.0,
        cache=cache,
        measures_perplexity=False,
    )


def settings(cache: Path, weights: str = "bf16") -> Settings:
    return Settings(TINY, weights, 1, 97, 1, cache)


def test_rounds_are_interleaved_after_one_short_warm_up(fake_arms: Path) -> None:
    ran = session.Session(plan(fake_arms, "ours", "transformers"), TINY, read_gb_s=lambda: 10.0)
    ran.run()
    notes = (fake_arms / "notes").read_text().split("\n")[:-1]
    a, b = "ours 65", "transformers 65"
    assert sorted(notes[:2]) == ["ours 3", "transformers 3"]
    assert notes[2:] == [a, b, b, a, a, b]
    ours, peer = ran.rows
    assert ours.tokens_per_s is not None and ours.tokens_per_s.median == 64.0
    assert peer.ratio is not None and peer.ratio.median == 1.0 and peer.ratio.runs == 3
    assert peer.same_tokens == 1.0


def test_every_arm_has_its_row_or_its_reason(fake_arms: Path) -> None:
    ran = session.Session(plan(fake_arms, "ours", "llama.cpp", "openvino"), TINY, lambda: None)
    ran.run()
    assert [(row.arm, row.tokens_per_s is None) for row in ran.rows] == [
        ("ours", False),
        ("llama.cpp", True),
        ("openvino", True),
    ]
    assert "ValueError: the kernel is gone" in ran.rows[1].reason
    assert ran.rows[2].reason == "not installed"
    assert [row.facts is None for row in ran.arm_rows] == [False, False, True]


def test_a_format_that_an_arm_lacks_is_a_reason(fake_arms: Path) -> None:
    ran = session.Session(plan(fake_arms, "ours", weights=("int8",)), TINY, lambda: None)
    ran.run()
    assert [row.reason for row in ran.rows] == ["not supported yet: int8"]


def test_an_arm_may_keep_a_format_of_its_own(fake_arms: Path) -> None:
    arms = ("ours", "ours@int8", "transformers@bf16")
    ran = session.Session(plan(fake_arms, *arms, weights=("int4",)), TINY, lambda: None)
    ran.run()
    assert [(row.arm, row.weights, row.reason) for row in ran.rows] == [
        ("ours", "int4", ""),
        ("ours@int8", "int8", "not supported yet: int8"),
        ("transformers@bf16", "bf16", ""),
    ]
    assert ran.rows[2].ratio is not None


def test_a_child_scores_documents(fake_arms: Path) -> None:
    with Child("ours", settings(fake_arms), 30.0) as child:
        assert child.load(settings(fake_arms)).engine == "fake 1"
        assert child.log_likelihood([Document((1, 2, 3), 1), Document((1, 2), 1)]) == -1.5


def test_an_arm_that_does_not_answer_is_given_up(fake_arms: Path) -> None:
    text = ARM.replace("{name}", "ours").replace("{fails_at}", "sleep")
    (fake_arms / "fake_ours.py").write_text(text)
    with Child("ours", settings(fake_arms), 30.0) as child:
        child.load(settings(fake_arms))
        child.timeout_s = 0.05
        with pytest.raises(ArmFailure, match=r"run: no answer in 0.05 s"):
            child.run([Work((1,), 2)])


def test_warm_up_keeps_the_prompts() -> None:
    work = [Work((1, 2), 65), Work((3,), 1)]
    assert session.warm_up(work) == [Work((1, 2), 3), Work((3,), 1)]
