"""What the scheduler knows of each running sequence, as arrays over slots."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hal.engine.batch import Index, Int32
from hal.engine.sequence import NO_SLOT, Sequence

Bools = NDArray[np.bool_]


def slots_bytes(max_num_seqs: int, max_model_len: int) -> int:
    """What the arrays of that size take of the host's memory; all but `tokens` are nothing."""
    return max_num_seqs * max_model_len * np.dtype(np.int32).itemsize


_NO_STOP_ID = -1


class Slots:
    """A running sequence's slot and those that its unforked choices have reserved.

    seqs                        who is in each slot, or None
    tokens                      [max_num_seqs, max_model_len] int32: prompt and sampled tokens
    num_tokens, num_computed    [max_num_seqs] int32: known tokens, and those with K and V
    is_running, is_decoding     False for a choice that is not forked yet
    may_share                   its last block may have another holder
    """

    def __init__(self, max_num_seqs: int, max_model_len: int) -> None:
        self.seqs: list[Sequence | None] = [None] * max_num_seqs
        self.tokens: Int32 = np.empty((max_num_seqs, max_model_len), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int32)
        self.num_computed = np.zeros(max_num_seqs, np.int32)
        self.is_running = np.zeros(max_num_seqs, np.bool_)
        self.is_decoding = np.zeros(max_num_seqs, np.bool_)
        self.may_share = np.zeros(max_num_seqs, np.bool_)
        self.num_running = 0
        self._max_len = np.zeros(max_num_seqs, np.int32)
        self._stop_ids = np.full((1, max_num_seqs), _NO_STOP_ID, np.int32)
        self._is_protected = np.zeros(max_num_seqs, np.bool_)
        self._priority = np.zeros(max_num_seqs, np.int64)
        self._urgency = np.zeros(max_num_seqs, np.float64)
        self._arrival = np.zeros(max_num_seqs, np.int64)
        self._index = np.zeros(max_num_seqs, np.int32)
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._decodes: Index | None = None  # None: the set changed

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def next_free(self) -> int:
        """The slot that `start` gives to a sequence next."""
        return self._free[-1]

    def decodes(self) -> Index:
        """Slots whose only unknown input is their last sampled token; the same array while the
        set stays the same."""
        if self._decodes is None:
            self._decodes = np.flatnonzero(self.is_decoding)
        return self._decodes

    def prefills(self) -> list[Sequence]:
        """Running sequences whose prefill was cut short."""
        return self._at(np.flatnonzero(self.is_running & ~self.is_decoding))

    def start(self, seq: Sequence, num_computed: int) -> None:
        """Give a sequence and its unforked choices slots; it runs from token `num_computed` on."""
        for member in seq.family:
            member.slot = self._free.pop()
            self.seqs[member.slot] = member
            self._describe(member)
        self.tokens[seq.slot, : len(seq.tokens)] = seq.tokens
        self.num_tokens[seq.slot] = len(seq.tokens)
        self.num_computed[seq.slot] = num_computed
        self.may_share[seq.slot] = False
        self.is_running[seq.slot] = True
        self.num_running += 1

    def fork(self, seq: Sequence) -> None:
        """The prefill is done: it and all of its choices decode."""
        slots, parent = [member.slot for member in seq.family], seq.slot
        num_tokens = self.num_tokens[parent]
        self.tokens[slots, :num_tokens] = self.tokens[parent, :num_tokens]
        self.num_tokens[slots] = num_tokens
        self.num_computed[slots] = self.num_computed[parent]
        self.is_running[slots] = self.is_decoding[slots] = True
        self.may_share[slots] = len(slots) > 1
        self.num_running += len(seq.unforked)
        self._decodes = None

    def release(self, seq: Sequence) -> None:
        """Take the slots of a running sequence and its choices; its tokens go back to it."""
        seq.tokens = self.tokens_of(seq)
        self.is_running[seq.slot] = self.is_decoding[seq.slot] = False
        self.num_running -= 1
        self._decodes = None
        for member in seq.family:
            member.tokens = seq.tokens
            self._free.append(member.slot)
            self.seqs[member.slot] = None
            member.slot = NO_SLOT

    def tokens_of(self, seq: Sequence) -> array[int]:
        return array("i", self.tokens[seq.slot, : self.num_tokens[seq.slot]].tobytes())

    def ends_after(self, slots: Index, num_tokens: int) -> Int32:
        """Tokens with K and V once each slot has run `num_tokens` more, or has come to its end."""
        last = self._max_len.take(slots) - 1  # the last sampled token is never fed back
        return np.minimum(self.num_tokens.take(slots) + num_tokens, last)

    def append(self, slots: Index, token_ids: Int32) -> Bools:
        """One sampled token for each slot; which of them has reached its end, [N]."""
        num_tokens = self.num_tokens.take(slots)
        self.tokens[slots, num_tokens] = token_ids
        num_tokens += 1
        self.num_tokens[slots] = num_tokens
        ended: Bools = num_tokens >= self._max_len.take(slots)
        for stop_ids in self._stop_ids:
            ended |= stop_ids.take(slots) == token_ids
        return ended

    def by_rank(self, slots: Index) -> list[Sequence]:
        """In the order of `Sequence.running_rank`: the last one is the next to be preempted."""
        keys = self._index, self._arrival, self._priority, ~self._is_protected
        return self._at(slots[np.lexsort([key[slots] for key in keys])])

    def running_by_rank(self) -> list[Sequence]:
        return self.by_rank(np.flatnonzero(self.is_running))

    def less_urgent_than(self, seq: Sequence) -> list[Sequence]:
        """Whom a waiting sequence may preempt to start, by rank: of its tenant, of lower priority,
        not protected, and not waiting for so long that its turn came first."""
        later = self.is_running & (self._priority > seq.request.priority)
        later &= (self._urgency > seq.urgency) & ~self._is_protected
        found = self.by_rank(np.flatnonzero(later)) if later.any() else []
        return [other for other in found if other.request.tenant == seq.request.tenant]

    def _at(self, slots: Iterable[int]) -> list[Sequence]:
        seqs = (self.seqs[slot] for slot in slots)
        return [seq for seq in seqs if seq is not None]

    def _describe(self, seq: Sequence) -> None:
        slot = seq.slot
        self._max_len[slot] = seq.max_len
        self._is_protected[slot] = seq.is_protected
        self._priority[slot] = seq.request.priority
        self._urgency[slot] = seq.urgency
        self._arrival[slot] = seq.arrival
        self._index[slot] = seq.index
        missing = len(seq.stop_ids) - len(self._stop_ids)
        if missing > 0:
            more = np.full((missing, len(self.seqs)), _NO_STOP_ID, np.int32)
            self._stop_ids = np.concatenate([self._stop_ids, more])
        self._stop_ids[:, slot] = _NO_STOP_ID
        self._stop_ids[: len(seq.stop_ids), slot] = list(seq.stop_ids)
