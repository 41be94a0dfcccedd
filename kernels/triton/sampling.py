"""sample: one program for each row; edges of the filters by bisection, no sort."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.kernels.reference.tensors import as_torch
from hal.kernels.triton.predicates import PREFERENCE, needs_card, unavailable
from hal.kernels.triton.program import Program
from hal.kernels.triton.tuning import launch_options
from hal.opset import sample
from hal.opset.sampling import SampleProblem, SamplingInputs

_PROGRAM = Program("sampling", "sample")


@sample.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=needs_card,
    unavailable=unavailable,
)
class TritonSample:
    """Noise and its sum with the logits in float64, as the reference fixes them."""

    def __init__(self, problem: SampleProblem, binder: Binder) -> None:
        caps, size = binder.selector.caps, {"VOCAB": problem.vocab_size}
        self._plain = {**launch_options(caps, "vocab_rows"), **size}
        self._filtered = {**launch_options(caps, "vocab_rows", "filtered"), **size}

    def __call__(self, logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
        settings = (
            *(inputs.temperature, inputs.top_k, inputs.top_p, inputs.min_p),
            *(inputs.seeds, inputs.token_index),
        )
        _PROGRAM.launch(
            (len(tokens),),
            logits,
            tokens,
            *map(as_torch, settings),
            IS_GREEDY=inputs.is_all_greedy,
            HAS_FILTERS=inputs.has_filters,
            **(self._filtered if inputs.has_filters else self._plain),
        )
