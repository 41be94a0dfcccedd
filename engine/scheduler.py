"""How many tokens does each sequence run this step?

Decodes first, then prefill chunks of running sequences, then new ones, under one token budget.
When blocks run out the last sequence in `Sequence.running_rank` gives all of its blocks back. What
is left of them in the prefix cache or the swap space is used again later, and the rest recomputed
from its tokens, which were all sampled already: greedy output is the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

import numpy as np

from hal.engine.batch import Batch, Float32, Index, StepResult
from hal.engine.batch_builder import (
    BlockChanges,
    Chunk,
    DecodeRows,
    ScheduledStep,
    build_batch,
    make_step,
)
from hal.engine.block_manager import BlockManager
from hal.engine.block_pool import make_blocks
from hal.engine.chunk_limit import ChunkLimit
from hal.engine.deadlines import Deadlines, too_late
from hal.engine.executor import check_result
from hal.engine.grammar import Grammar
from hal.engine.prefix_cache import Clock
from hal.engine.request import FinishReason, Output, Pooling, Request
from hal.engine.request_check import check_pin, check_request, pin_limit
from hal.engine.sampler import SamplingState
from hal.engine.scheduler_config import SchedulerConfig
from hal.engine.sequence import Sequence, Status, make_sequences, urgency
from hal.engine.slots import Slots
from hal.engine.spare_room import SpareRoom
from hal.engine.step_costs import StepCosts
from hal.engine.step_output import Ended, StepOutput, hidden_by_row
from hal.engine.waiting import WaitingQueue
from hal.errors import TOO_LATE, RequestError

__all__ = ["Scheduler", "SchedulerConfig"]

OUTPUT_TOKEN_COST = 2.0
"""What a sampled token counts for a tenant, a prompt token counting 1 (Sheng et al. 2024)."""


class Scheduler:
    """Queues, slots and blocks. `schedule()` and `update()` alternate."""

    def __init__(
        self,
        config: SchedulerConfig,
        clock: Clock = time.monotonic,
        blocks: BlockManager | None = None,
    ) -> None:
        """blocks: who holds what, as `make_blocks` makes it; given by simulations."""
        self.config = config
        self.blocks = make_blocks(config, clock) if blocks is None else blocks
        self.num_preemptions = 0
        self.num_steps = 0
        self.num_generated_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_late = 0
        self.slots = Slots(config.max_num_seqs, config.max_model_len)
        self._clock = clock
        self._now = clock()
        self._sampling = SamplingState(config.max_num_seqs)
        self._requests: dict[str, list[Sequence]] = {}
        self._waiting = WaitingQueue()
        self._num_arrivals = 0
        self._deadlines = Deadlines()
        self._late: list[Output] = []
        self._decodes = DecodeRows(self.slots.decodes())
        self._chunks: dict[Sequence, Chunk] = {}
        self._victims: list[Sequence] | None = None  # the last one first; None: not looked up
        self._spare = SpareRoom(config, self.slots, self.blocks)
        self._costs = StepCosts()
        self._chunk_limit = ChunkLimit(config, self._costs)
        self._is_batch_open = True  # with static batching only
        self._in_flight: ScheduledStep | None = None

    @property
    def num_running(self) -> int:
        return self.slots.num_running

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.num_running or self._waiting or self._late)

    @property
    def is_in_flight(self) -> bool:
        """Whether a batch is out that neither update() nor fail() has been told of."""
        return self._in_flight is not None

    def add(self, request: Request, seed: int, grammar: Grammar | None = None) -> None:
        """Queue a request, guided by `grammar`. Raises RequestError or ContextLengthError if it
        can never finish."""
        if request.request_id in self._requests:
            raise RequestError(
                f"a request with the id {request.request_id!r} is already running; ids must differ",
                param="request_id",
            )
        check_request(request, self.config, self.blocks)
        self._tick()
        turn = urgency(self._now, request.priority, self.config.priority_wait_s)
        first = make_sequences(
            request,
            self._num_arrivals,
            seed,
            self.config.max_model_len,
            turn=turn,
            arrived_at=self._now,
        )
        self._num_arrivals += 1
        self._requests[request.request_id] = first.family
        for seq in first.family:
            seq.grammar = grammar
        self._wait(first)

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
            self._end([seq])
            outputs.append(seq.last_output(FinishReason.ABORT))
        return outputs

    def pin(self, name: str, token_ids: Iterable[int], tenant: str = "") -> int:
        """Keep the full blocks of a prompt that ran until `unpin`; returns how many tokens those
        hold. Raises RequestError, with PINS_FULL for too many; then nothing is pinned."""
        assert self._in_flight is None, "pin() between steps only"
        if self.blocks.is_pinned(name):
            raise RequestError(f"there is a pin named {name!r} already; unpin it first")
        live = (choices[0].request for choices in self._requests.values())
        limit = pin_limit(live, self.config, self.blocks)
        tokens = np.array(list(token_ids), np.int32)
        outcome = self.blocks.pin(name, tokens, tenant.encode(), limit)
        if not self.blocks.is_pinned(name):
            check_pin(outcome, limit, len(tokens), self.config, self.blocks)
        return outcome.num_blocks * self.config.block_size

    def unpin(self, name: str) -> None:
        """Raises RequestError if there is no such pin (any more)."""
        if not self.blocks.is_pinned(name):
            raise RequestError(
                f"there is no pin named {name!r}: it was unpinned, or its blocks were lost "
                "with the request that computed them"
            )
        self.blocks.unpin(name)

    def schedule(self) -> Batch | None:
        """Choose the next step's work, or None if nothing can run."""
        assert self._in_flight is None, "update() or fail() must follow schedule()"
        self._tick()
        for seq in self._deadlines.take_late(self._now):
            self._drop(seq)
        self._chunks.clear()
        self._victims = None
        self._spare.forget()
        self._grow_decodes()
        budget = self._continue_prefill(self._prefill_budget())
        if self._may_admit() and self._admit(budget) > 0:
            self._is_batch_open = False
        copies = self.blocks.take_copies()  # releases what they hold, whatever comes of the step
        decodes = self._decode_rows()
        if not len(decodes.slots) and not self._chunks:
            return None
        self.num_steps += 1
        step = make_step(self.num_steps, decodes, list(self._chunks.values()))
        sampling = self._sampling.build(step.row_slots, self.slots.seqs)
        changes = BlockChanges(self.blocks.take_updates(), copies, self.blocks.take_swaps())
        batch = build_batch(step, self.slots, sampling, changes)
        self._in_flight = step
        return batch

    def update(self, batch: Batch, result: StepResult) -> StepOutput:
        """Take over what the step sampled. Raises EngineError if `result` is malformed."""
        step = self._in_flight
        assert step is not None and step.step == batch.step
        check_result(batch, result)
        scheduled_at = self._now
        self._tick()
        self._learn(step, batch, result, self._now - scheduled_at)
        self._advance(step, batch)
        for chunk in step.chunks:
            if chunk.completes_prefill:
                self._fork(chunk.seq)
        self._sampling.record(step.row_slots, result.token_ids[:, 0])
        lost = self._sampling.guided.lost(step.row_slots)
        output = self._append_tokens(step, result, lost, hidden_by_row(batch, result))
        self._in_flight = None
        return output

    def fail(self, error: str, error_code: str) -> list[Output]:
        """The step in flight was lost: end its sequences, whose cached contents are unknown."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return []
        if self.blocks.swap is not None:
            self.blocks.swap.lose()
        # row_slots: if update() itself broke, some choices may be forked already.
        seqs = [self.slots.seqs[slot] for slot in [*step.slots.tolist(), *step.row_slots.tolist()]]
        members = (member for seq in seqs if seq is not None for member in seq.family)
        alive = list(dict.fromkeys(members))
        self._end(alive, retract=True)
        return [seq.last_output(FinishReason.ERROR, error, error_code) for seq in alive]

    def take_late(self) -> list[Output]:
        """The last outputs of those that schedule() dropped because of their timeout_s."""
        late, self._late = self._late, []
        return late

    def _tick(self) -> None:
        """Time never goes back, whatever the clock does."""
        self._now = max(self._now, self._clock())

    def _prefill_budget(self) -> int:
        num_decodes = len(self.slots.decodes())
        budget = self.config.max_num_batched_tokens - num_decodes
        return self._chunk_limit.cut(budget) if num_decodes else budget

    def _decode_rows(self) -> DecodeRows:
        slots = self.slots.decodes()
        if slots is not self._decodes.slots:
            self._decodes = DecodeRows(slots)
        return self._decodes

    def _grow_decodes(self) -> None:
        """Give each decode that needs one a block, all at once where that is possible."""
        slots = self.slots.decodes()
        needs_block = self.blocks.are_full(slots, self.slots.num_computed.take(slots))
        may_share = self.slots.may_share.take(slots)
        if self.config.window is None and not np.count_nonzero(may_share):
            full = slots[needs_block]
            if not len(full) or self.blocks.append(full):
                return
        for seq in self.slots.by_rank(slots[needs_block | may_share]):
            if seq.status is Status.RUNNING:
                self._grow(seq, int(self.slots.num_computed[seq.slot]), 1)

    def _continue_prefill(self, budget: int) -> int:
        """Run the prefills that were cut short; returns the budget that is left."""
        if len(self.slots.decodes()) == self.num_running:
            return budget
        for seq in self.slots.prefills():
            budget -= self._run_chunk(seq, budget)
        return budget

    def _run_chunk(self, seq: Sequence, budget: int) -> int:
        """Schedule the next known tokens; returns how many, 0 if `seq` had to be preempted."""
        start, known = int(self.slots.num_computed[seq.slot]), int(self.slots.num_tokens[seq.slot])
        end = min(known, start + budget)
        if not self._grow(seq, start, end - start):
            return 0
        self._chunks[seq] = Chunk(seq, start, end, completes_prefill=end == known)
        return end - start

    def _grow(self, seq: Sequence, num_computed: int, num_new: int) -> bool:
        """Allocate, preempting from the end of the ranks; False if that reached `seq` itself."""
        while not self.blocks.allocate(seq.slot, num_computed, num_new):
            victim = self._next_victim()
            self._preempt(victim)
            if victim is seq:
                return False
        self.slots.may_share[seq.slot] = False
        return True

    def _next_victim(self) -> Sequence:
        if self._victims is None:
            self._victims = self.slots.running_by_rank()
        while self._victims[-1].status is not Status.RUNNING:
            self._victims.pop()
        return self._victims.pop()

    def _may_admit(self) -> bool:
        """Always, but to a static batch only until somebody did not fit or all had started."""
        if self.num_running == 0:
            self._is_batch_open = True
        return self._is_batch_open or not self.config.static_batching

    def _admit(self, budget: int) -> int:
        """Start waiting sequences in order; the first that does not fit holds up the rest.

        Returns the budget that is left.
        """
        while self._waiting and budget > 0:
            seq = self._waiting.first()
            if seq.prefix is None:
                tokens = np.array(seq.tokens, np.int32)
                seq.prefix = self.blocks.prefix_keys(tokens, seq.request.tenant.encode())
            # A mean is over all tokens, so all of them must run.
            is_mean = seq.request.pooling is Pooling.MEAN
            matched = [] if is_mean else self.blocks.match(seq.prefix)
            swapped = [] if is_mean else self.blocks.find_swapped(seq.prefix, len(matched))
            start = (len(matched) + len(swapped)) * self.config.block_size
            is_whole = len(seq.tokens) - start <= budget
            if not is_whole and not self.config.chunked_prefill:
                return budget
            num_steps = -(-(len(seq.tokens) - start) // self.config.max_num_batched_tokens)
            if self._deadlines.is_hopeless(seq, num_steps, self._now):
                self._drop(seq)
                continue
            # Room for the whole prompt, not for its first chunk: half a prompt serves nobody and
            # would be preempted. Behind a window a chunk is all that is ever held.
            num_tokens = len(seq.tokens)
            if self.config.window is not None:
                num_tokens = min(num_tokens, start + budget)
            while not self._start(seq, matched, swapped, num_tokens):
                if not self._preempt_for(seq, self.blocks.num_needed(matched, num_tokens)):
                    return budget
            num_run = self._run_chunk(seq, budget)
            if num_run:
                self._spare.add(seq)
            budget -= num_run
        return budget

    def _start(
        self, seq: Sequence, matched: list[int], swapped: list[int], num_tokens: int
    ) -> bool:
        """Move a waiting sequence into a slot with the cached blocks, or change nothing."""
        if self.slots.num_free < len(seq.family):
            return False
        assert seq.prefix is not None
        needed = self.blocks.num_needed(matched, num_tokens)
        if needed + self._spare.num_blocks() > self.blocks.num_available:
            return False
        row, priority = self.slots.next_free, seq.request.priority
        if not self.blocks.attach(row, seq.prefix, matched, num_tokens, priority):
            return False
        self._waiting.remove(seq)
        self.blocks.restore(row, swapped)
        num_cached = (len(matched) + len(swapped)) * self.config.block_size
        self.slots.start(seq, num_cached)
        for member in seq.family:
            self._sampling.assign(member)
        if seq.num_preemptions == 0:
            self._count_start(seq, num_cached)
        seq.prefix = None
        self._set_running(seq)
        return True

    def _set_running(self, seq: Sequence) -> None:
        seq.status = Status.RUNNING
        self._victims = None

    def _count_start(self, seq: Sequence, num_cached: int) -> None:
        if self.blocks.has_prefix_cache:
            self.num_prefix_queries += len(seq.tokens)
            self.num_prefix_hits += num_cached
        self._waiting.charge(seq.request.tenant, len(seq.tokens) - num_cached)
        for member in seq.family:
            member.num_cached_tokens = num_cached
            member.queued_s = self._now - seq.arrived_at

    def _preempt_for(self, seq: Sequence, num_blocks: int) -> bool:
        """Preempt one less urgent sequence, if all of them together would do."""
        victims = self.slots.less_urgent_than(seq)
        num_slots = self.slots.num_free + sum(len(victim.family) for victim in victims)
        if not victims or num_slots < len(seq.family):
            return False
        rows = np.array([victim.slot for victim in victims], np.intp)
        needed = num_blocks + self._spare.num_blocks(leaving=rows)
        if self.blocks.num_available + self.blocks.num_exclusive(rows) < needed:
            return False
        self._preempt(victims[-1])
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Take everything from a running sequence but its tokens, and queue it again."""
        self._leave([seq])
        self._spare.forget()
        self.num_preemptions += 1
        seq.num_preemptions += 1
        seq.status = Status.WAITING
        self._wait(seq)

    def _wait(self, seq: Sequence) -> None:
        self._waiting.add(seq)
        self._deadlines.add(seq)

    def _drop(self, seq: Sequence) -> None:
        """It waits and cannot be in time any more."""
        family, error = seq.family, too_late(seq, self._now)
        self._end(family)
        self.num_late += len(family)
        self._late += [member.last_output(FinishReason.ERROR, error, TOO_LATE) for member in family]

    def _leave(self, seqs: list[Sequence], *, retract: bool = False) -> None:
        self.blocks.free(np.array([seq.slot for seq in seqs], np.intp), retract=retract)
        for seq in seqs:
            self._chunks.pop(seq, None)
            self.slots.release(seq)

    def _end(self, seqs: list[Sequence], *, retract: bool = False) -> None:
        """Remove live sequences for good. The choices behind them are the caller's business."""
        running = [seq for seq in seqs if seq.status is Status.RUNNING]
        if running:
            self._leave(running, retract=retract)
        for seq in seqs:
            if seq.status is Status.WAITING:
                self._waiting.remove(seq)
            seq.status = Status.FINISHED
            choices = self._requests[seq.request.request_id]
            choices.remove(seq)
            if not choices:
                del self._requests[seq.request.request_id]

    def _learn(self, step: ScheduledStep, batch: Batch, result: StepResult, seconds: float) -> None:
        self._deadlines.record_step(seconds)
        self._costs.record(step.num_prefilled, seconds - result.swap_s)
        if self.blocks.swap is not None:
            num_copies = 0 if batch.swaps is None else batch.swaps.num_blocks
            self.blocks.swap.settle(num_copies, result.swap_s, self._costs.token_s)

    def _advance(self, step: ScheduledStep, batch: Batch) -> None:
        """Count the step's tokens as computed; only now may others share the blocks they fill.

        A failed row's blocks are offered too, and retracted before anybody can look for them.
        """
        computed = self.slots.num_computed.take(step.slots) + batch.q_lens
        self.slots.num_computed[step.slots] = computed
        if self.blocks.has_prefix_cache:
            self.blocks.commit(step.slots, self.slots.tokens, computed)

    def _fork(self, seq: Sequence) -> None:
        """The prefill is done: from here on every choice decodes for itself."""
        self.slots.fork(seq)
        if seq.unforked:
            children = np.array([child.slot for child in seq.unforked], np.intp)
            self.blocks.fork(seq.slot, children)
            for child in seq.unforked:
                self._set_running(child)
            seq.unforked = []

    def _append_tokens(
        self,
        step: ScheduledStep,
        result: StepResult,
        lost: dict[int, str],
        hidden: dict[int, Float32],
    ) -> StepOutput:
        slots, tokens = step.row_slots, result.token_ids[:, 0]
        seqs, ended = self.slots.seqs, {}
        has_ended = self.slots.append(slots, tokens)
        has_failed = result.row_errors.copy()
        has_failed[list(lost)] = True
        for row in (has_failed | has_ended).nonzero()[0].tolist():
            seq = seqs[slots[row]]
            assert seq is not None
            if has_failed[row]:
                ended[row] = Ended(seq, FinishReason.ERROR, lost_grammar=lost.get(row))
            else:
                ended[row] = Ended.by_token(seq, int(tokens[row]))
        num_failed = int(np.count_nonzero(has_failed))
        self.num_generated_tokens += len(slots) - num_failed
        if self._waiting.has_tenants:
            self._charge(slots)
        if ended:
            self._end_rows(list(ended.values()))
        return StepOutput(
            slots=slots,
            token_ids=tokens,
            logprobs=result.logprobs,
            ended=ended,
            seqs=seqs,
            hidden=hidden,
        )

    def _end_rows(self, ended: list[Ended]) -> None:
        failed = [end.seq for end in ended if end.reason is FinishReason.ERROR]
        for seq in failed:
            self.slots.num_tokens[seq.slot] -= 1  # the token of a failed row means nothing
        self._end(failed, retract=True)
        self._end([end.seq for end in ended if end.reason is not FinishReason.ERROR])

    def _charge(self, slots: Index) -> None:
        seqs = (self.slots.seqs[slot] for slot in slots.tolist())
        for tenant, count in Counter(seq.request.tenant for seq in seqs if seq).items():
            self._waiting.charge(tenant, OUTPUT_TOKEN_COST * count)
