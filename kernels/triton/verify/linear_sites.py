"""A layer in every format of codes: a few tokens, and a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from hal.dtypes import DType
from hal.kernels.triton.verify.site import Site
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.weights import WEIGHT_FORMATS

_WIDTH = 4096
# Those that are compiled to programs of their own.
_FORMATS = ("int8", "int8-a16", "fp8", "int4", "int4-g128-asym-a16")
_NUM_TOKENS = {"small": 8, "large": 512}


def linear_sites() -> Iterator[Site]:
    """As wide as high. The matrix that makes logits is the same program, written in float32."""
    for name in _FORMATS:
        weights = WEIGHT_FORMATS[name]
        problem = LinearProblem(
            in_features=_WIDTH,
            out_features=_WIDTH,
            dtype=DType.BFLOAT16,
            has_bias=True,
            weights=weights,
        )
        for shape_class, num_tokens in _NUM_TOKENS.items():
            kind = "int8_" if not weights.keeps_activations else ""
            yield Site(
                op="linear",
                name=f"{name}-{shape_class}",
                problem=problem,
                call=partial(_multiply, num_tokens),
                multiplies=f"{kind}{'any' if shape_class == 'small' else 'large'}",
            )
    yield Site(
        op="vocab",
        name="int8-logits",
        problem=VocabProblem(
            vocab_size=_WIDTH,
            hidden_size=_WIDTH,
            dtype=DType.BFLOAT16,
            embeds=True,
            makes_logits=True,
            weights=WEIGHT_FORMATS["int8"],
        ),
        call=_make_logits,
        multiplies="int8_any",
    )


def _make_logits(family: VocabFamily) -> None:
    num_tokens = _NUM_TOKENS["small"]
    x = torch.empty((num_tokens, _WIDTH), dtype=torch.bfloat16)
    family.logits(x, torch.empty((num_tokens, _WIDTH)))


def _multiply(num_tokens: int, family: LinearFamily) -> None:
    x = torch.empty((num_tokens, _WIDTH), dtype=torch.bfloat16)
    family(x, torch.empty_like(x))
