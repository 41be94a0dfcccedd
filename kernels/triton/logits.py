"""adjust_logits on listed elements only; logprobs in passes over a row, no sort."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.kernels.reference.tensors import as_torch
from hal.kernels.triton.predicates import PREFERENCE, needs_card, unavailable
from hal.kernels.triton.program import Program
from hal.kernels.triton.tuning import launch_options
from hal.opset import adjust_logits, logprobs
from hal.opset.sampling import SampleProblem, SamplingInputs

_PENALISE = Program("logits", "penalise")
_BIAS = Program("logits", "add_bias")
_LOGPROBS = Program("logits", "logprobs")


@adjust_logits.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_card,
    unavailable=unavailable,
)
class TritonAdjustLogits:
    """Rows are copied by torch where `out` is not `logits`."""

    def __init__(self, problem: SampleProblem, binder: Binder) -> None:
        self._options = launch_options(binder.selector.caps, "tokens")
        self._vocab_size = problem.vocab_size

    def __call__(self, logits: torch.Tensor, inputs: SamplingInputs, out: torch.Tensor) -> None:
        if out.data_ptr() != logits.data_ptr():
            out.copy_(logits)
        if inputs.has_penalties:
            lists = (inputs.penalty_rows, inputs.penalty_ids, inputs.penalty_counts)
            settings = (inputs.presence, inputs.frequency, inputs.repetition)
            self._launch(_PENALISE, out, *map(as_torch, (*lists, *settings)))
        if inputs.has_bias:
            lists = (inputs.bias_rows, inputs.bias_ids, inputs.bias_values)
            self._launch(_BIAS, out, *map(as_torch, lists))

    def _launch(self, program: Program, out: torch.Tensor, *tensors: torch.Tensor) -> None:
        count = len(tensors[0])
        grid = (-(-count // self._options["BLOCK"]),)
        program.launch(grid, out, *tensors, count, self._vocab_size, **self._options)


@logprobs.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_card,
    unavailable=unavailable,
)
class TritonLogprobs:
    """Two passes over a row, and one more for each of the top K."""

    def __init__(self, problem: SampleProblem, binder: Binder) -> None:
        options = launch_options(binder.selector.caps, "vocab_rows")
        self._options = {**options, "VOCAB": problem.vocab_size}

    def __call__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        chosen: torch.Tensor,
        rank: torch.Tensor,
        top_ids: torch.Tensor,
        top: torch.Tensor,
    ) -> None:
        outputs = (chosen, rank, top_ids, top)
        _LOGPROBS.launch((len(tokens),), logits, tokens, *outputs, top.shape[1], **self._options)
