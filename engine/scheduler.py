"""How many tokens does each sequence run this step?

Decodes first, then prefill chunks of running sequences, then new ones, under one token budget.
When blocks run out the last sequence in `Sequence.running_rank` gives all of its blocks back and
is recomputed later from its tokens, which were all sampled already: greedy output is the same.
"""

from __future__ import annotations

from bisect import insort

import numpy as np

from hal.engine.batch import Batch, Int32, StepResult
from hal.engine.batch_builder import (
    Chunk,
    ScheduledStep,
    block_copy_array,
    block_update_array,
    build_batch,
    make_step,
    row_slots,
)
from hal.engine.block_manager import BlockManager
from hal.engine.executor import check_result
from hal.engine.grammar import Grammar
from hal.engine.request import FinishReason, Output, Request
from hal.engine.request_check import check_request
from hal.engine.sampler import SamplingState, row_logprobs
from hal.engine.scheduler_config import SchedulerConfig
from hal.engine.sequence import NO_SLOT, Sequence, Status, make_sequences
from hal.errors import NOT_FINITE, GrammarError, RequestError

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Queues, slots and blocks. `schedule()` and `update()` alternate."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.blocks = BlockManager(
            config.num_blocks,
            config.block_size,
            window=config.window,
            prefix_caching=config.prefix_caching,
        )
        self.num_preemptions = 0
        self.num_steps = 0
        self.num_generated_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._sampling = SamplingState(config.max_num_seqs)
        self._requests: dict[str, list[Sequence]] = {}
        self._waiting: list[Sequence] = []  # by waiting_rank
        self._running: list[Sequence] = []  # by running_rank
        self._num_arrivals = 0
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self._num_computed = np.zeros(config.max_num_seqs, np.int32)
        self._may_share = np.zeros(config.max_num_seqs, np.bool_)
        self._decodes: list[Sequence] | None = None  # None: the running set changed
        self._decode_slots: Int32 = np.empty(0, np.int32)
        self._chunks: dict[Sequence, Chunk] = {}
        self._grown: list[Sequence] = []
        self._in_flight: ScheduledStep | None = None

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, request: Request, seed: int, grammar: Grammar | None = None) -> None:
        """Queue a request, guided by `grammar`. Raises RequestError or ContextLengthError if it
        can never finish."""
        if request.request_id in self._requests:
            raise RequestError(
                f"a request with the id {request.request_id!r} is already running; ids must differ",
                param="request_id",
            )
        check_request(request, self.config, self.blocks)
        first = make_sequences(request, self._num_arrivals, seed, self.config.max_model_len)
        self._num_arrivals += 1
        self._requests[request.request_id] = first.family
        for seq in first.family:
            seq.grammar = grammar
        insort(self._waiting, first, key=_waiting_rank)

    def abort(self, request_id: str, index: int | None = None) -> list[Output]:
        """End all choices of a request, in whatever state; none if it is not here (any more).

        With `index`, only that choice, which must have had its first token.
        """
        assert self._in_flight is None, "abort() between steps only"
        outputs = []
        for seq in list(self._requests.get(request_id, ())):
            if index is not None and seq.index != index:
                continue
            assert index is None or not seq.unforked, "the other choices still hang on this one"
            self._end(seq)
            outputs.append(seq.last_output(FinishReason.ABORT))
        return outputs

    def schedule(self) -> Batch | None:
        """Choose the next step's work, or None if nothing can run."""
        assert self._in_flight is None, "update() or fail() must follow schedule()"
        self._chunks.clear()
        self._grown.clear()
        budget = self.config.max_num_batched_tokens - self._grow_decodes()
        self._admit(self._continue_prefill(budget))
        copies = block_copy_array(self.blocks.take_copies())
        decodes, slots = self._decoding()
        if not decodes and not self._chunks:
            return None
        self.num_steps += 1
        step = make_step(self.num_steps, decodes, list(self._chunks.values()))
        sample_slots = row_slots(step, slots)
        batch = build_batch(
            step,
            slots,
            self._num_computed[slots],
            sample_slots,
            self._sampling.build(sample_slots, step.rows),
            (block_update_array(self._grown), copies),
        )
        self._in_flight = step
        return batch

    @property
    def is_in_flight(self) -> bool:
        """Whether a batch is out that neither update() nor fail() has been told of."""
        return self._in_flight is not None

    def update(self, batch: Batch, result: StepResult) -> list[Output]:
        """Take over what the step sampled. Raises EngineError if `result` is malformed."""
        step = self._in_flight
        assert step is not None and step.step == batch.step
        check_result(batch, result)
        failed = {step.rows[row] for row in np.flatnonzero(result.row_errors).tolist()}
        self._advance(step, batch)
        for chunk in step.chunks:
            if chunk.completes_prefill:
                self._fork(chunk.seq)
        self._sampling.record(batch.sample_slots, result.token_ids[:, 0])
        outputs = self._end_lost(step, self._sampling.guided.lost(batch.sample_slots))
        outputs += self._append_tokens(step, result, failed)
        self._in_flight = None
        return outputs

    def fail(self, error: str, error_code: str) -> list[Output]:
        """The step in flight was lost: end its sequences, whose cached contents are unknown."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return []
        members = [member for seq in step.seqs for member in seq.family]
        # rows: if update() itself broke, some choices may be forked already.
        everyone = dict.fromkeys([*members, *step.rows])
        alive = [seq for seq in everyone if seq.status is not Status.FINISHED]
        for seq in alive:
            self._end(seq, retract=True)
        return [seq.last_output(FinishReason.ERROR, error, error_code) for seq in alive]

    def _decoding(self) -> tuple[list[Sequence], Int32]:
        """Running sequences whose only unknown input is their last sampled token, by rank."""
        if self._decodes is None:
            self._decodes = [seq for seq in self._running if seq.is_decoding]
            self._decode_slots = np.array([seq.slot for seq in self._decodes], np.int32)
        return self._decodes, self._decode_slots

    def _grow_decodes(self) -> int:
        """Give each decode that needs one a block; returns how many tokens decodes take."""
        decodes, slots = self._decoding()
        at_boundary = self._num_computed[slots] % self.config.block_size == 0
        for row in np.flatnonzero(at_boundary | self._may_share[slots]).tolist():
            if decodes[row].status is Status.RUNNING:
                self._grow(decodes[row], int(self._num_computed[decodes[row].slot]), 1)
        return len(decodes)

    def _continue_prefill(self, budget: int) -> int:
        """Run the prefill that was cut short, if any; returns the budget that is left.

        There is one at most: it took all that was left, so nothing could start behind it.
        """
        if len(self._decoding()[0]) == len(self._running):
            return budget
        (seq,) = [seq for seq in self._running if not seq.is_decoding]
        return budget - self._run_chunk(seq, budget)

    def _run_chunk(self, seq: Sequence, budget: int) -> int:
        """Schedule the next known tokens; returns how many, 0 if `seq` had to be preempted."""
        start = int(self._num_computed[seq.slot])
        num_tokens = min(len(seq.tokens) - start, budget)
        if not self._grow(seq, start, num_tokens):
            return 0
        self._chunks[seq] = Chunk(seq, start, num_tokens)
        return num_tokens

    def _grow(self, seq: Sequence, num_computed: int, num_new: int) -> bool:
        """Allocate, preempting from the end of the ranks; False if that reached `seq` itself."""
        while not self.blocks.allocate(seq.table, num_computed, num_new):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        self._may_share[seq.slot] = False
        if seq.table.unsent:
            self._grown.append(seq)
        return True

    def _admit(self, budget: int) -> None:
        """Start waiting sequences in order; the first that does not fit holds up the rest."""
        while self._waiting and budget > 0:
            seq = self._waiting[0]
            matched = self.blocks.match(seq.table, seq.tokens)
            start = len(matched) * self.config.block_size
            is_whole = len(seq.tokens) - start <= budget
            if not is_whole and not self.config.chunked_prefill:
                return
            # Room for the whole prompt, not for its first chunk: half a prompt serves nobody and
            # would be preempted. Behind a window a chunk is all that is ever held.
            num_tokens = len(seq.tokens)
            if self.config.window is not None:
                num_tokens = min(num_tokens, start + budget)
            while not self._start(seq, matched, num_tokens):
                if not self._preempt_for(seq, num_tokens, len(matched)):
                    return
            budget -= self._run_chunk(seq, budget)

    def _start(self, seq: Sequence, matched: list[int], num_tokens: int) -> bool:
        """Move a waiting sequence into a slot with the cached blocks, or change nothing."""
        if len(self._free_slots) < len(seq.family):
            return False
        if not self.blocks.attach(seq.table, matched, num_tokens):
            return False
        self._waiting.remove(seq)
        for member in seq.family:
            member.slot = self._free_slots.pop()
            self._sampling.assign(member)
        num_cached = len(matched) * self.config.block_size
        if seq.num_preemptions == 0:
            self._count_prefix_hit(seq, num_cached)
        self._num_computed[seq.slot] = num_cached
        self._run(seq)
        return True

    def _run(self, seq: Sequence) -> None:
        seq.status = Status.RUNNING
        insort(self._running, seq, key=_running_rank)
        self._decodes = None

    def _count_prefix_hit(self, seq: Sequence, num_cached: int) -> None:
        if self.blocks.has_prefix_cache:
            self.num_prefix_queries += len(seq.tokens)
            self.num_prefix_hits += num_cached
        for member in seq.family:
            member.num_cached_tokens = num_cached

    def _preempt_for(self, seq: Sequence, num_tokens: int, num_matched: int) -> bool:
        """Preempt one sequence of strictly lower priority, if all of them together would do."""
        victims = [
            victim
            for victim in self._running
            if victim.request.priority > seq.request.priority and not victim.is_protected
        ]
        if not victims:
            return False
        num_slots = len(self._free_slots) + sum(len(victim.family) for victim in victims)
        num_blocks = self.blocks.num_available + sum(
            self.blocks.num_exclusive(victim.table) for victim in victims
        )
        needed = self.blocks.num_blocks_for(num_tokens) - num_matched
        if num_slots < len(seq.family) or num_blocks < needed:
            return False
        self._preempt(victims[-1])
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Take everything from a running sequence but its tokens, and queue it again."""
        self._leave(seq)
        self.num_preemptions += 1
        seq.num_preemptions += 1
        seq.status = Status.WAITING
        insort(self._waiting, seq, key=_waiting_rank)

    def _leave(self, seq: Sequence, *, retract: bool = False) -> None:
        self.blocks.free(seq.table, retract=retract)
        self._running.remove(seq)
        self._chunks.pop(seq, None)
        self._decodes = None
        seq.is_decoding = False
        for member in seq.family:
            self._free_slots.append(member.slot)
            member.slot = NO_SLOT

    def _end(self, seq: Sequence, *, retract: bool = False) -> None:
        """Remove a live sequence for good. The choices behind it are the caller's business."""
        if seq.status is Status.RUNNING:
            self._leave(seq, retract=retract)
        elif seq.status is Status.WAITING:
            self._waiting.remove(seq)
        seq.status = Status.FINISHED
        choices = self._requests[seq.request.request_id]
        choices.remove(seq)
        if not choices:
            del self._requests[seq.request.request_id]

    def _advance(self, step: ScheduledStep, batch: Batch) -> None:
        """Count the step's tokens as computed; only now may others share the blocks they fill.

        A failed row's blocks are offered too, and retracted before anybody can look for them.
        """
        self._num_computed[batch.slots] += batch.q_lens
        if not self.blocks.has_prefix_cache:
            return
        computed, block_size = self._num_computed[batch.slots], self.config.block_size
        is_filled = computed // block_size > (computed - batch.q_lens) // block_size
        for row in np.flatnonzero(is_filled).tolist():
            seq = step.seqs[row]
            self.blocks.commit(seq.table, seq.tokens, int(computed[row]))

    def _fork(self, seq: Sequence) -> None:
        """The prefill is done: from here on every choice decodes for itself."""
        seq.is_decoding = True
        self._decodes = None
        for child in seq.unforked:
            child.tokens = seq.tokens[:]
            child.is_decoding = True
            self.blocks.fork(seq.table, child.table)
            self._num_computed[child.slot] = self._num_computed[seq.slot]
            self._run(child)
        self._may_share[[member.slot for member in seq.family]] = len(seq.unforked) > 0
        seq.unforked = []

    def _end_lost(self, step: ScheduledStep, errors: dict[int, str]) -> list[Output]:
        """End the guided sequences of these rows whose grammar cannot be followed further."""
        outputs = []
        for row, error in errors.items():
            self._end(step.rows[row])
            outputs.append(step.rows[row].last_output(FinishReason.ERROR, error, GrammarError.code))
        return outputs

    def _append_tokens(
        self, step: ScheduledStep, result: StepResult, failed: set[Sequence]
    ) -> list[Output]:
        outputs = []
        tokens = result.token_ids[:, 0].tolist()
        for row, (seq, token) in enumerate(zip(step.rows, tokens, strict=True)):
            if seq.status is Status.FINISHED:
                continue  # its grammar was lost
            if seq in failed:
                error = _NOT_FINITE.format(seq.num_output_tokens)
                self._end(seq, retract=True)
                outputs.append(seq.last_output(FinishReason.ERROR, error, NOT_FINITE))
                continue
            seq.tokens.append(token)
            finish_reason = stop_reason = None
            if token in seq.stop_ids:
                finish_reason, stop_reason = FinishReason.STOP, seq.stop_reason(token)
            elif len(seq.tokens) >= seq.max_len:
                finish_reason = FinishReason.LENGTH
            if finish_reason is not None:
                self._end(seq)
            outputs.append(
                Output(
                    request_id=seq.request.request_id,
                    index=seq.index,
                    token_ids=(token,),
                    logprobs=row_logprobs(result.logprobs, row, token, seq),
                    finish_reason=finish_reason,
                    stop_reason=stop_reason,
                    num_cached_tokens=seq.num_cached_tokens,
                )
            )
        self.num_generated_tokens += len(step.rows) - len(failed)
        return outputs


_NOT_FINITE = (
    "the logits of output token {} were not finite (NaN or infinity), so no token could be "
    "chosen; other requests are not affected. Try a wider dtype, or check the weights"
)


def _waiting_rank(seq: Sequence) -> tuple[int, int, int]:
    return seq.waiting_rank


def _running_rank(seq: Sequence) -> tuple[bool, int, int, int]:
    return seq.running_rank
