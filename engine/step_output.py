"""What a step sampled: arrays, from which one Output per sequence is made for who wants them."""

from __future__ import annotations

from dataclasses import dataclass

from hal.engine.batch import Batch, Float32, Index, Int32, SampledLogprobs, StepResult
from hal.engine.request import FinishReason, Output
from hal.engine.sampler import row_logprobs
from hal.engine.sequence import Sequence
from hal.errors import NOT_FINITE, GrammarError

_NOT_FINITE = (
    "the logits of output token {} were not finite (NaN or infinity), so no token could be "
    "chosen; other requests are not affected. Try a wider dtype, or check the weights"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence that ended in the step; with FinishReason.ERROR it has no token of it.

    lost_grammar: what a grammar says that cannot be followed further
    """

    seq: Sequence
    reason: FinishReason
    stop_reason: int | None = None
    lost_grammar: str | None = None

    @classmethod
    def by_token(cls, seq: Sequence, token: int) -> Ended:
        """By a stop token, or else by its length."""
        if token in seq.stop_ids:
            return cls(seq, FinishReason.STOP, seq.stop_reason(token))
        return cls(seq, FinishReason.LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """slots [N], token_ids [N] int32: what each sampled row got; ended: who ended, by row.

    hidden: by row, of those that wanted it, which all end in the step that samples them
    seqs: who is in each slot. `outputs()` reads it, so call that before the next schedule().
    """

    slots: Index
    token_ids: Int32
    logprobs: SampledLogprobs | None
    ended: dict[int, Ended]
    seqs: list[Sequence | None]
    hidden: dict[int, Float32]

    def outputs(self) -> list[Output]:
        """One for each row, in their order."""
        outputs = []
        rows = zip(self.slots.tolist(), self.token_ids.tolist(), strict=True)
        for row, (slot, token) in enumerate(rows):
            seq = self.seqs[slot]
            if seq is None or row in self.ended or self.logprobs is not None:
                outputs.append(self._output(row, token, seq))
                continue
            outputs.append(
                Output(
                    request_id=seq.request.request_id,
                    index=seq.index,
                    token_ids=(token,),
                    num_cached_tokens=seq.num_cached_tokens,
                    queued_s=seq.queued_s,
                )
            )
        return outputs

    def _output(self, row: int, token: int, seq: Sequence | None) -> Output:
        """Of a row with more to say than its token."""
        ended = self.ended.get(row)
        if ended is not None:
            seq = ended.seq
            if ended.reason is FinishReason.ERROR:
                return _failed_output(seq, ended.lost_grammar)
        hidden = self.hidden.get(row)
        assert seq is not None, "outputs() after the next step was scheduled"
        return Output(
            request_id=seq.request.request_id,
            index=seq.index,
            token_ids=(token,),
            logprobs=row_logprobs(self.logprobs, row, token, seq),
            finish_reason=None if ended is None else ended.reason,
            stop_reason=None if ended is None else ended.stop_reason,
            num_cached_tokens=seq.num_cached_tokens,
            queued_s=seq.queued_s,
            embedding=None if hidden is None else hidden.astype("<f4").tobytes(),
        )


def _failed_output(seq: Sequence, lost_grammar: str | None) -> Output:
    if lost_grammar is not None:
        return seq.last_output(FinishReason.ERROR, lost_grammar, GrammarError.code)
    error = _NOT_FINITE.format(seq.num_output_tokens)
    return seq.last_output(FinishReason.ERROR, error, NOT_FINITE)


def hidden_by_row(batch: Batch, result: StepResult) -> dict[int, Float32]:
    """What `StepOutput.hidden` holds."""
    if batch.pools is None or result.hidden is None:
        return {}
    return dict(zip(batch.pools.rows.tolist(), result.hidden, strict=True))
