"""What a step sampled: arrays, from which one Output per sequence is made for who wants them."""

from __future__ import annotations

from dataclasses import dataclass

from hal.engine.batch import Index, Int32, SampledLogprobs
from hal.engine.request import FinishReason, Output
from hal.engine.sampler import row_logprobs
from hal.engine.sequence import Sequence
from hal.errors import NOT_FINITE

_NOT_FINITE = (
    "the logits of output token {} were not finite (NaN or infinity), so no token could be "
    "chosen; other requests are not affected. Try a wider dtype, or check the weights"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence that ended in the step; with FinishReason.ERROR it has no token of it."""

    seq: Sequence
    reason: FinishReason
    stop_reason: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """slots [N], token_ids [N] int32: what each sampled row got; ended: who ended, by row.

    seqs: who is in each slot. `outputs()` reads it, so call that before the next schedule().
    """

    slots: Index
    token_ids: Int32
    logprobs: SampledLogprobs | None
    ended: dict[int, Ended]
    seqs: list[Sequence | None]

    def outputs(self) -> list[Output]:
        """One for each row, in their order."""
        rows = zip(self.slots.tolist(), self.token_ids.tolist(), strict=True)
        return [
            self._last(row, token, self.ended[row])
            if row in self.ended
            else self._output(row, token, self.seqs[slot])
            for row, (slot, token) in enumerate(rows)
        ]

    def _last(self, row: int, token: int, ended: Ended) -> Output:
        if ended.reason is FinishReason.ERROR:
            error = _NOT_FINITE.format(ended.seq.num_output_tokens)
            return ended.seq.last_output(FinishReason.ERROR, error, NOT_FINITE)
        return self._output(row, token, ended.seq, ended.reason, ended.stop_reason)

    def _output(
        self,
        row: int,
        token: int,
        seq: Sequence | None,
        reason: FinishReason | None = None,
        stop_reason: int | None = None,
    ) -> Output:
        assert seq is not None, "outputs() after the next step was scheduled"
        return Output(
            request_id=seq.request.request_id,
            index=seq.index,
            token_ids=(token,),
            logprobs=row_logprobs(self.logprobs, row, token, seq),
            finish_reason=reason,
            stop_reason=stop_reason,
            num_cached_tokens=seq.num_cached_tokens,
        )
