"""hal-info prove: devices that agree are proved to, and a planted error is found where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hal import opset
from hal.cli import info
from hal.cli.info import prove
from hal.cli.info.proof import Comparison, Run, Verdict, compare
from hal.cli.info.proof_text import cause, render
from hal.cli.info.prove import split_devices
from hal.cli.info.prove_run import Job, config_as_json, run_job
from hal.config import EngineConfig
from hal.errors import ConfigError
from hal.kernels import register_all
from hal.kernels.reference.norm import rms_norm_reference

register_all()

PROMPTS = [[5], list(range(40, 63))]


def run_on(device: str, follow: list[list[int]] | None = None, **settings: object) -> Run:
    base: dict[str, object] = {"dtype": "float32", "max_model_len": 64, "prefix_caching": False}
    config = EngineConfig(device=device, max_num_seqs=2, **{**base, **settings})  # type: ignore[arg-type]
    job = Job(config=config_as_json(config), prompts=PROMPTS, max_tokens=6, follow=follow or [])
    return Run(*run_job(job))


@pytest.fixture(scope="module")
def reference() -> Run:
    return run_on("null")


def held_to(reference: Run, **settings: object) -> Comparison:
    texts = [p + a for p, a in zip(PROMPTS, reference.facts.answers, strict=True)]
    return compare(reference, run_on("null", follow=texts, **settings))


@pytest.fixture
def planted() -> Iterator[str]:
    """An rms_norm that is one per mille off, from its eleventh call on."""
    calls: list[int] = []

    def off(
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        rms_norm_reference(x, residual, weight, eps, out)
        calls.append(len(calls) % 13)
        if calls[-1] == 4:  # of 13 norms: the attention norm of layer 2
            out.mul_(1.001)

    opset.rms_norm.kernel("planted", preference=-1)(off)
    yield "rms_norm=planted"
    del opset.rms_norm.kernels["planted"]


def test_a_device_agrees_with_itself_to_the_bit(reference: Run) -> None:
    comparison = held_to(reference)
    assert comparison.verdict is Verdict.AGREE
    assert (comparison.num_equal, comparison.num_tokens) == (12, 12)
    assert comparison.first_site is None and comparison.divergences == ()
    assert comparison.worst_site is not None and comparison.worst_site.error == 0.0


def test_every_site_of_every_layer_is_traced_in_order(reference: Run) -> None:
    sites = [name.split("/", 2)[2] for name in reference.arrays if name.startswith("trace/0/")]
    parts = ("attention_norm", "attention", "mlp_norm", "mlp")
    assert sites == [f"layer {layer} {part}" for layer in range(6) for part in parts]
    # The prompt of 1 token and its 6 answers: every position, hidden_size 256.
    assert reference.arrays["trace/0/layer 5 mlp"].shape == (7, 256)
    assert reference.arrays["trace/1/layer 0 attention"].shape == (29, 256)


def test_a_planted_error_is_found_at_its_site(reference: Run, planted: str) -> None:
    comparison = held_to(reference, kernel=(planted,))
    assert comparison.verdict is Verdict.DIFFER
    assert comparison.first_site is not None
    assert comparison.first_site.site == "layer 2 attention_norm"
    assert comparison.first_site.error == pytest.approx(1e-3, rel=0.01)


def test_a_nan_is_infinitely_far_and_still_json(reference: Run) -> None:
    arrays = dict(reference.arrays)
    name = "trace/0/layer 1 mlp"
    arrays[name] = np.full_like(arrays[name], np.nan)
    comparison = compare(reference, replace(reference, arrays=arrays))
    assert comparison.verdict is Verdict.DIFFER
    assert comparison.first_site is not None and comparison.first_site.site == "layer 1 mlp"
    said = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert said["first_site"]["error"] is None


def changed(run: Run, prompt: int, token: int, token_id: int) -> Run:
    """The same run with one other token in an answer."""
    answers = [list(answer) for answer in run.facts.answers]
    answers[prompt][token] = token_id
    return replace(run, facts=replace(run.facts, answers=answers))


def test_the_first_other_token_is_weighed_by_the_first_device(reference: Run) -> None:
    ids, logprobs = reference.arrays["top_ids/1"][3], reference.arrays["top_logprobs/1"][3]
    second = compare(reference, changed(reference, 1, 3, int(ids[1])))
    (divergence,) = second.divergences
    assert (divergence.prompt, divergence.token) == (1, 3)
    assert divergence.expected == ids[0] == reference.facts.answers[1][3]
    assert divergence.regret == divergence.margin == pytest.approx(logprobs[0] - logprobs[1])
    assert not divergence.is_bound
    # What follows the first difference answers another text: three tokens were equal.
    assert second.num_equal == 6 + 3

    outside = int(next(i for i in range(2048) if i not in ids))
    (bound,) = compare(reference, changed(reference, 1, 3, outside)).divergences
    assert bound.is_bound
    assert bound.regret == pytest.approx(logprobs[0] - logprobs[-1])


def test_a_tie_is_no_difference(reference: Run) -> None:
    tied = dict(reference.arrays)
    tied["top_logprobs/1"] = tied["top_logprobs/1"].copy()
    tied["top_logprobs/1"][3, 1] = tied["top_logprobs/1"][3, 0] - np.float32(1e-5)
    first = replace(reference, arrays=tied)
    other = changed(reference, 1, 3, int(reference.arrays["top_ids/1"][3, 1]))
    assert compare(first, other).verdict is Verdict.TIE
    assert compare(reference, other).verdict is Verdict.DIFFER


def test_the_command_proves_two_devices(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prove", "hal-tiny", "--devices", "cpu,null", "--dtype", "float32"]
    assert info.main([*argv, "--max-tokens", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == 1
    assert [run["spec"] for run in said["runs"]] == ["cpu", "null"]
    assert [len(prompt) for prompt in said["prompts"]] == list(prove.PROMPT_LENGTHS)
    (comparison,) = said["comparisons"]
    assert comparison["verdict"] == "agrees"
    assert comparison["num_equal"] == comparison["num_tokens"] == 16
    assert said["runs"][0]["allocated_bytes"] > said["runs"][0]["weights_bytes"] > 0


def test_a_device_that_dies_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    devices = "null,null:h100,crash@3,null:mi300x,nan@2,null:oom@0,null:gfx942"
    argv = ["prove", "hal-tiny", "--devices", devices, "--dtype", "float32", "--max-tokens", "3"]
    assert info.main([*argv, "--json"]) == 1
    said = capsys.readouterr()
    comparisons = {c["spec"]: c for c in json.loads(said.out)["comparisons"]}
    verdicts = {spec: c["verdict"] for spec, c in comparisons.items()}
    assert verdicts == {
        "null:h100,crash@3": "failed",
        "null:mi300x,nan@2": "failed",
        "null:oom@0": "failed",
        "null:gfx942": "agrees",
    }
    reasons = [comparisons[spec]["reason"] for spec in verdicts]
    assert reasons[0].startswith("the process died with SIGABRT: null device: aborting")
    assert reasons[1].startswith("HAL-E610: prompt 0: the logits of output token 0")
    assert reasons[2].startswith("HAL-E310: ")
    assert said.err.splitlines()[-1].startswith("hal-info prove: null:h100,crash@3 failed: the")


def test_a_device_that_hangs_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prove", "hal-tiny", "--devices", "null,null:hang@1,null:gfx942", "--timeout", "20"]
    assert info.main([*argv, "--dtype", "float32", "--max-tokens", "1", "--json"]) == 1
    said = capsys.readouterr()
    hung, other = json.loads(said.out)["comparisons"]
    assert hung["verdict"] == "failed"
    assert hung["reason"].endswith("no answer within 20 s: it hangs, or --timeout is too short")
    assert other["verdict"] == "agrees"


def test_a_standard_that_dies_is_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prove", "hal-tiny", "--devices", "null:crash@0,null", "--max-tokens", "1"]
    assert info.main(argv) == 6
    assert "the process died with SIGABRT" in capsys.readouterr().err.splitlines()[-1]


def test_prompts_may_be_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("Hello there\n\nWhat is 12 + 30?\n")
    argv = ["prove", "hal-tiny", "--devices", "null,cpu", "--prompts", str(file)]
    assert info.main([*argv, "--max-tokens", "2", "--dtype", "float32"]) == 0
    text = capsys.readouterr().out
    assert "2 prompts of" in text
    assert "4/4" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_cause_names_the_site_and_the_token(reference: Run, planted: str) -> None:
    from hal.cli.info.proof import Proof

    comparison = held_to(reference, kernel=(planted,))
    proof = Proof(
        model="hal-tiny",
        prompts=tuple(map(tuple, PROMPTS)),
        runs=(reference.facts, reference.facts),
        comparisons=(comparison,),
    )
    assert "first site beyond its limit: layer 2 attention_norm" in cause(proof)
    assert "differs" in render(proof)
    json.dumps(proof.as_json(), allow_nan=False)


def test_devices_are_split_at_commas_but_faults_are_not() -> None:
    assert split_devices("cpu, null:h100,oom@3,nan@4,cuda:0") == (
        "cpu",
        "null:h100,oom@3,nan@4",
        "cuda:0",
    )
    with pytest.raises(ConfigError, match="at least two"):
        split_devices("cpu")
    with pytest.raises(ConfigError, match="names cpu twice"):
        split_devices("cpu,null,cpu")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["hal-tiny"], "--devices is missing: give at least two"),
        (["hal-tiny", "--devices", "cpu,cuda"], "--device cuda cannot be used"),
        (["hal-tiny", "--devices", "cpu,nul"], "Did you mean --device null?"),
        (["/nope", "--devices", "cpu,null"], "/nope does not exist"),
        (["hal-tiny", "--devices", "cpu,null", "--max-tokens", "0"], "must be at least 1"),
        (["hal-tiny", "--devices", "cpu,null", "--timeout", "0"], "--timeout must be at least 1"),
        (["hal-tiny", "--devices", "cpu,null", "--max-tokens", "1024"], "leaves no room"),
        (["hal-tiny", "--devices", "cpu,null", "--prompts", "/nope"], "--prompts /nope"),
        (["hal-tiny", "--devices", "cpu,null", "--device", "cpu"], "did you mean --devices?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert info.main(["prove", *argv]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
