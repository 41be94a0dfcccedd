"""Upper bounds of the token rates: what memory, arithmetic and links allow, nothing else counted.

Every figure is what the hardware could do at its published peaks if all other work cost nothing;
a real run is slower. Source: the roofline model (Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from hal.dtypes import DType
from hal.kv import KVKind
from hal.planning.model import PlannedModel
from hal.planning.quantization import weight_bytes
from hal.planning.settings import PlanSettings
from hal.planning.shape import Role, Weight
from hal.planning.sizing import Sized, kv_token_bytes, scheme_of
from hal.planning.target import PlanDevice
from hal.profiles import Profile
from hal.report import JsonValue

_FP8 = (DType.FLOAT8_E4M3FN, DType.FLOAT8_E4M3FNUZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second at most, and what would be busy all the time: memory, compute or link.

    num_seqs sequences of num_tokens tokens each, over all of them together. step_bytes: what one
    rank reads in a step of step_tokens tokens.
    """

    what: str
    tokens_per_s: float
    bound: str
    num_seqs: int
    num_tokens: int
    step_bytes: float
    step_tokens: int

    def as_json(self) -> dict[str, JsonValue]:
        return {
            "what": self.what,
            "upper_bound_tokens_per_s": round(self.tokens_per_s, 2),
            "bound": self.bound,
            "sequences": self.num_seqs,
            "tokens_per_sequence": self.num_tokens,
            "read_bytes_per_token": round(self.step_bytes / self.step_tokens),
        }


def met_share(weight: Weight, num_tokens: int) -> float:
    """Which part of its matrices at least one of num_tokens tokens is multiplied with.

    Expected where no expert is favoured and tokens choose on their own; others meet fewer.
    """
    if weight.active is None:
        return 1.0
    return 1.0 - (1.0 - weight.active / weight.count) ** num_tokens if weight.count else 0.0


@dataclass(frozen=True, slots=True)
class _Work:
    """What one step needs of one rank."""

    read_bytes: float
    flops: float
    sent_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Rates of one model on devices of one profile."""

    model: PlannedModel
    settings: PlanSettings
    device: PlanDevice
    profile: Profile
    sized: Sized

    def decode(self, num_seqs: int, num_tokens: int) -> Rate | None:
        """One token for each of `num_seqs` sequences that have `num_tokens` behind them."""
        shape, tp = self.model.shape, self._tp
        kv_bytes = num_seqs * sum(
            self._kv_bytes(layers_index) * self._seen(layers_index, num_tokens)
            for layers_index in range(len(shape.kv))
        )
        attended = sum(
            layers.count * self._seen(i, num_tokens) for i, layers in enumerate(shape.kv)
        )
        flops = 2 * (shape.active_parameters + shape.attention_dim * attended) * num_seqs / tp
        work = _Work(
            self._weight_bytes(num_seqs, with_head=True) + kv_bytes,
            flops,
            self._sent_bytes(num_seqs),
        )
        return self._rate("decode", work, num_seqs, num_tokens, num_seqs)

    def prefill(self, num_tokens: int) -> Rate | None:
        """Prompts of `num_tokens` tokens in full steps; a token sees half of its prompt.

        None for a model with an encoder: what reads the prompt is not what writes the answer.
        """
        shape, tp = self.model.shape, self._tp
        if any(layers.kind is KVKind.CROSS for layers in shape.kv):
            return None
        step = self.sized.resolved.max_num_batched_tokens
        head = sum(w.active_elements for w in shape.weights if w.role is Role.HEAD)
        attended = sum(
            layers.count * self._seen_by_a_prompt(i, num_tokens)
            for i, layers in enumerate(shape.kv)
        )
        attention_dim = shape.prefill_attention_dim or shape.attention_dim
        flops = 2 * (shape.active_parameters - head + attention_dim * attended) * step / tp
        work = _Work(self._weight_bytes(step, with_head=False), flops, self._sent_bytes(step))
        return self._rate("prefill", work, 1, num_tokens, step)

    @property
    def _tp(self) -> int:
        return self.settings.tp or 1

    def _rate(
        self, what: str, work: _Work, num_seqs: int, num_tokens: int, num_new: int
    ) -> Rate | None:
        peak = self._peak()
        if peak is None:
            return None
        times = {
            "memory": work.read_bytes / self.profile.bandwidth_bytes_per_s,
            "compute": work.flops / peak,
        }
        link = self.device.link_between(self._tp)
        if self._tp > 1 and link is not None:
            times["link"] = work.sent_bytes / link.bytes_per_s
        bound = max(times, key=lambda name: times[name])
        return Rate(
            what=what,
            tokens_per_s=num_new / times[bound],
            bound=bound,
            num_seqs=num_seqs,
            num_tokens=num_tokens,
            step_bytes=work.read_bytes,
            step_tokens=num_new,
        )

    def _weight_bytes(self, num_tokens: int, *, with_head: bool) -> float:
        """Read once a step on one rank: of experts those that its tokens are expected to meet."""
        dtype, scheme = self.sized.resolved.dtype, scheme_of(self.model, self.settings)
        return sum(
            met_share(weight, num_tokens) * weight_bytes(weight, self._tp, dtype, scheme)
            for weight in self.model.shape.weights
            if weight.role is not Role.EMBEDDING and (weight.role is not Role.HEAD or with_head)
        )

    def _kv_bytes(self, index: int) -> int:
        layers = self.model.shape.kv[index]
        dtype = self.sized.resolved.dtype
        return layers.count * kv_token_bytes(layers, self._tp, dtype, self.settings.kv)

    def _seen(self, index: int, num_tokens: int) -> int:
        window = self.model.shape.kv[index].window
        return num_tokens if window is None else min(num_tokens, window)

    def _seen_by_a_prompt(self, index: int, num_tokens: int) -> float:
        """The mean over a prompt's tokens: the first ones see less than a window, too."""
        window = self._seen(index, num_tokens)
        return window - window * window / (2 * num_tokens)

    def _sent_bytes(self, num_tokens: int) -> float:
        """Two all-reduces a layer; a ring sends each byte 2 (tp - 1) / tp times."""
        shape, tp = self.model.shape, self._tp
        row_bytes = self.sized.resolved.dtype.num_bytes(shape.hidden_size)
        return 2 * shape.num_layers * num_tokens * row_bytes * 2 * (tp - 1) / tp

    def _peak(self) -> float | None:
        """The fastest type that the products may run in; wider where the device lacks it."""
        peaks = self.profile.peak_flops
        scheme = scheme_of(self.model, self.settings)
        types = [self.sized.resolved.dtype]
        if scheme is not None and scheme.compute is not None:
            types += _FP8 if scheme.compute in _FP8 else (scheme.compute,)
        found = [peaks[dtype] for dtype in types if dtype in peaks]
        if found:
            return max(found)
        return peaks.get(DType.FLOAT32)
