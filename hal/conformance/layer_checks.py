"""One layer at a time, given the oracle's own input: an error shows in the layer that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from hal.conformance.case import Check, guarded, within
from hal.conformance.decoder_oracle import DecoderOracle, plain_decoder
from hal.conformance.limits import Tolerance
from hal.conformance.model_checks import ModelRecord, texts_of
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.run import run_checks
from hal.conformance.stage import Float64, Stage
from hal.conformance.tiny_models import TinyModel, as_stored
from hal.device import Device
from hal.opset.attention import AttentionFamily, AttentionProblem
from hal.tensor import Tensor

_TEXTS = slice(0, 3, 2)  # the two longest
# A whole prompt beside a chunk; two chunks; two decodes.
_STEPS = (
    (SequenceStep(35, 35), SequenceStep(20, 20)),
    (SequenceStep(1, 36), SequenceStep(29, 49)),
    (SequenceStep(1, 37), SequenceStep(1, 50)),
)


class LayerUnderTest(Protocol):
    """One layer of a loaded model. x [T, hidden_size] may be changed."""

    problem: AttentionProblem
    family: AttentionFamily

    def __call__(self, x: Tensor, positions: Tensor, kv: Tensor, out: Tensor) -> None: ...


def layer_record(
    under_test: LayerUnderTest, index: int, model: TinyModel, device: Device, seed: int
) -> ModelRecord:
    """Layer `index` over a paged cache in several steps."""
    ran = run_checks(lambda: _checks(under_test, index, model, Stage(device, seed)))
    case = f"layer {index}"
    return ModelRecord(
        level="layer",
        model=model.shape.model_type,
        dtype=str(model.dtype),
        case=case if seed == 0 else f"{case}, seed {seed}",
        raised=ran.raised,
        checks=ran.checks,
    )


def _checks(
    under_test: LayerUnderTest, index: int, model: TinyModel, stage: Stage
) -> Iterator[Check]:
    oracle, plain = DecoderOracle(model), plain_decoder(model)
    states = [oracle.hidden_states(text)[index] for text in texts_of(model, 0)[_TEXTS]]
    xs = [as_stored(x, model.dtype) for x in states]
    expected = [oracle.layer(model.layers[index], x) for x in xs]
    rounded = np.concatenate([plain.layer(model.layers[index], x) for x in xs])
    tolerance = Tolerance.of(model.dtype, rounded, np.concatenate(expected))
    cache = PagedCache(stage, under_test.family, under_test.problem, [len(x) for x in xs])
    outs, wanted = [], []
    for steps in _STEPS:
        cache.plan(list(steps), list(range(len(steps))))
        spans = [slice(s.seq_len - s.q_len, s.seq_len) for s in steps]
        positions = np.concatenate([np.arange(s.start, s.stop, dtype=np.int32) for s in spans])
        x = stage.place(_cut(xs, spans), model.dtype)
        out = guarded(stage, x.host.shape, model.dtype)
        under_test(x.device, stage.indices(positions), cache.kv, out.out)
        yield out.check(stage)
        outs.append(out.read(stage))
        wanted.append(_cut(expected, spans))
    yield from within("out", np.concatenate(outs), np.concatenate(wanted), tolerance)


def _cut(rows: list[Float64], spans: list[slice]) -> Float64:
    return np.concatenate([r[s] for r, s in zip(rows, spans, strict=True)])
