"""MemoryPlan: where every byte goes. Pure arithmetic, also for devices that are absent."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from hal.device import Memory, MemoryKind
from hal.errors import ConfigError, MemoryPlanError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class MemoryMode(StrEnum):
    """How the one memory knob was given."""

    FRACTION = "fraction"
    SIZE = "size"
    RESERVE = "reserve"


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """`--memory` parsed: a fraction in (0, 1], bytes to use, or bytes to leave alone."""

    mode: MemoryMode
    amount: float

    def __str__(self) -> str:
        if self.mode is MemoryMode.FRACTION:
            return f"{self.amount:g}"
        size = format_bytes(int(self.amount))
        return size if self.mode is MemoryMode.SIZE else f"reserve:{size}"


def format_bytes(num_bytes: int) -> str:
    """`num_bytes` for people: 1.50 GiB, 12.0 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"


def size_argument(num_bytes: int, *, round_up: bool = True) -> str:
    """`num_bytes` as --memory takes it, rounded to hundredths of its unit: 37.51GiB."""
    round_to = math.ceil if round_up else math.floor
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes >= size:
            return f"{round_to(num_bytes * 100 / size) / 100:.2f}{unit}"
    return f"{round_to(num_bytes * 100 / 1024) / 100:.2f}KiB"


def parse_size(text: str) -> int:
    """Bytes of `24GiB`, `512M`, `1048576B`; raises ConfigError, also where the unit is missing."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:i?b)?|b)", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write it like 24GiB or 512MiB")
    return int(float(match.group(1)) * _UNITS[match.group(2) or ""])


def parse_memory(value: str | float) -> MemoryRequest:
    """`0.9`, `24GiB` or `reserve:8GiB`; raises ConfigError."""
    text = str(value).strip()
    if text.startswith("reserve:"):
        return MemoryRequest(MemoryMode.RESERVE, parse_size(text.removeprefix("reserve:")))
    try:
        fraction = float(text)
    except ValueError:
        return MemoryRequest(MemoryMode.SIZE, parse_size(text))
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(
            f"memory {text} is not a fraction from 0 to 1; for a size write a unit, like {text}GiB"
        )
    return MemoryRequest(MemoryMode.FRACTION, fraction)


def parse_swap_space(value: str | float) -> int:
    """Bytes of `8GiB`; a bare number counts GiB, as in vLLM. Raises ConfigError."""
    text = str(value).strip()
    try:
        num_bytes = float(text) * (1 << 30)
    except ValueError:
        return parse_size(text)
    if not 0 <= num_bytes < math.inf:
        raise ConfigError(f"swap space {text} is no size; write it like 8GiB, or 0 for none")
    return int(num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What the plan adds up. kv_bytes_per_block spans all layers of a block of block_size tokens;
    it is 0 for a model that keeps no cache.

    num_extra_blocks are blocks that no sequence owns (a null block, where the engine keeps one).
    blocks_per_seq: the most that one sequence holds; 0: what max_model_len tokens need
    min_num_seqs: sequences of max_model_len that must fit at once
    bookkeeping_bytes: the scheduler's arrays in host memory, part of the budget where swap_bytes is
    swap_bytes: host memory for evicted blocks, of which whole blocks are used; on a card of its own
    memory it is no part of the budget
    """

    memory: Memory
    request: MemoryRequest
    weights_bytes: int
    activation_bytes: int
    logits_bytes: int
    kv_bytes_per_block: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    graphs_bytes: int = 0
    communicator_bytes: int = 0
    num_extra_blocks: int = 0
    blocks_per_seq: int = 0
    min_num_seqs: int = 1
    swap_bytes: int = 0
    bookkeeping_bytes: int = 0

    @property
    def num_swap_blocks(self) -> int:
        return self.swap_bytes // self.kv_bytes_per_block if self.kv_bytes_per_block else 0

    @property
    def budgeted_swap_bytes(self) -> int:
        """Of the swap space, what the budget covers."""
        if self.memory.kind is MemoryKind.DEDICATED:
            return 0
        return self.num_swap_blocks * self.kv_bytes_per_block

    def of_rank(self, size: int, communicator_bytes: int) -> PlanInputs:
        """Of one of `size` ranks on one machine: its share of the memory and of --memory."""
        memory, request = self.memory, self.request
        if request.mode is not MemoryMode.FRACTION:
            request = replace(request, amount=request.amount / size)
        share = replace(
            memory,
            total_bytes=memory.total_bytes // size,
            available_bytes=memory.available_bytes // size,
        )
        return replace(self, memory=share, request=request, communicator_bytes=communicator_bytes)

    @property
    def budgeted_bookkeeping_bytes(self) -> int:
        return 0 if self.memory.kind is MemoryKind.DEDICATED else self.bookkeeping_bytes

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        return (
            self.budgeted_swap_bytes
            + self.budgeted_bookkeeping_bytes
            + self.weights_bytes
            + self.activation_bytes
            + self.logits_bytes
            + self.graphs_bytes
            + self.communicator_bytes
        )

    @property
    def sequence_blocks(self) -> int:
        return self.blocks_per_seq or -(-self.max_model_len // self.block_size)

    @property
    def needed_blocks(self) -> int:
        """The least that starts: the sequences that must fit, and blocks that no sequence owns."""
        return self.sequence_blocks * self.min_num_seqs + self.num_extra_blocks

    @property
    def needed_bytes(self) -> int:
        return self.fixed_bytes + self.needed_blocks * self.kv_bytes_per_block


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The ledger in bytes, and what the KV pool can hold. `budget_bytes` covers all but others, and
    but the swap space of a card, which is the host's.
    """

    kind: MemoryKind
    total_bytes: int
    others_bytes: int
    budget_bytes: int
    weights_bytes: int
    activation_bytes: int
    logits_bytes: int
    graphs_bytes: int
    communicator_bytes: int
    kv_bytes: int
    unused_bytes: int
    num_blocks: int
    block_size: int
    kv_bytes_per_token: float
    max_model_len: int
    max_num_seqs: int
    blocks_per_seq: int
    swap_bytes: int = 0
    num_swap_blocks: int = 0
    bookkeeping_bytes: int = 0

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def full_length_sequences(self) -> float:
        """Sequences of max_model_len that fit the KV pool at once."""
        return self.num_blocks / self.blocks_per_seq

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "kv_tokens": self.kv_tokens}

    def __str__(self) -> str:
        rows = (
            ("weights", self.weights_bytes),
            ("activations", self.activation_bytes),
            ("logits", self.logits_bytes),
            ("graphs", self.graphs_bytes),
            ("communicator", self.communicator_bytes),
            ("bookkeeping", self.bookkeeping_bytes),
            ("KV cache", self.kv_bytes),
            ("swap space", 0 if self.kind is MemoryKind.DEDICATED else self.swap_bytes),
            ("not used", self.unused_bytes),
        )
        lines = [f"  {name:<13}{format_bytes(size):>11}" for name, size in rows if size]
        lines.append(
            f"  {self.num_blocks} blocks of {self.block_size} tokens = {self.kv_tokens} tokens, "
            f"{self.full_length_sequences:.1f} sequences of {self.max_model_len}"
        )
        if self.num_swap_blocks:
            size = format_bytes(self.swap_bytes)
            lines.append(
                f"  {self.num_swap_blocks} more in {size} of the host's memory, when evicted"
            )
        return "\n".join(lines)


def plan_memory(inputs: PlanInputs) -> MemoryPlan:
    """Size the KV pool; raises MemoryPlanError with the computed remedies when it does not fit."""
    budget = memory_budget(inputs)
    if inputs.swap_bytes and not inputs.num_swap_blocks:
        raise MemoryPlanError(
            f"--swap-space {format_bytes(inputs.swap_bytes)} holds no block: one has "
            f"{format_bytes(inputs.kv_bytes_per_block)}. Set it to 0 or to "
            f"{size_argument(inputs.kv_bytes_per_block)} and more"
        )
    room = budget - inputs.fixed_bytes
    if inputs.needed_bytes > budget:
        raise MemoryPlanError(_does_not_fit(inputs, budget))
    num_blocks = inputs.sequence_blocks * inputs.max_num_seqs + inputs.num_extra_blocks
    if inputs.kv_bytes_per_block:
        num_blocks = min(num_blocks, room // inputs.kv_bytes_per_block)
    kv_bytes = num_blocks * inputs.kv_bytes_per_block
    return MemoryPlan(
        kind=inputs.memory.kind,
        total_bytes=inputs.memory.total_bytes,
        others_bytes=inputs.memory.total_bytes - inputs.memory.available_bytes,
        budget_bytes=budget,
        weights_bytes=inputs.weights_bytes,
        activation_bytes=inputs.activation_bytes,
        logits_bytes=inputs.logits_bytes,
        graphs_bytes=inputs.graphs_bytes,
        communicator_bytes=inputs.communicator_bytes,
        kv_bytes=kv_bytes,
        unused_bytes=room - kv_bytes,
        num_blocks=num_blocks,
        block_size=inputs.block_size,
        kv_bytes_per_token=inputs.kv_bytes_per_block / inputs.block_size,
        max_model_len=inputs.max_model_len,
        max_num_seqs=inputs.max_num_seqs,
        blocks_per_seq=inputs.sequence_blocks,
        swap_bytes=inputs.num_swap_blocks * inputs.kv_bytes_per_block,
        num_swap_blocks=inputs.num_swap_blocks,
        bookkeeping_bytes=inputs.budgeted_bookkeeping_bytes,
    )


def memory_budget(inputs: PlanInputs) -> int:
    """Bytes that --memory gives; raises MemoryPlanError when others hold part of them."""
    memory, request = inputs.memory, inputs.request
    available = memory.available_bytes
    if request.mode is MemoryMode.RESERVE:
        return available - int(request.amount)
    if request.mode is MemoryMode.SIZE:
        wanted = int(request.amount)
    elif memory.kind is MemoryKind.DEDICATED:
        wanted = int(memory.total_bytes * request.amount)
    else:
        return int(available * request.amount)
    if wanted > available:
        others = memory.total_bytes - available
        raise MemoryPlanError(
            f"--memory {request} asks for {format_bytes(wanted)}, but only "
            f"{format_bytes(available)} of {format_bytes(memory.total_bytes)} are available "
            f"({format_bytes(others)} are held by others). Lower --memory to "
            f"{_largest_request(memory, request)} or free memory"
        )
    return wanted


def _largest_request(memory: Memory, request: MemoryRequest) -> str:
    if request.mode is MemoryMode.SIZE:
        return size_argument(memory.available_bytes, round_up=False)
    hundredths = 100 * memory.available_bytes // memory.total_bytes
    if hundredths == 0:
        return size_argument(memory.available_bytes, round_up=False)
    return f"{hundredths / 100:g}"


def _does_not_fit(inputs: PlanInputs, budget: int) -> str:
    remedies = _remedies(inputs, budget, inputs.needed_bytes)
    return f"{shortfall(inputs, budget)}. {remedies[0].upper()}{remedies[1:]}"


def shortfall(inputs: PlanInputs, budget: int) -> str:
    """What the parts need and what there is, for an error."""
    kv_bytes = inputs.needed_blocks * inputs.kv_bytes_per_block
    count = "one sequence" if inputs.min_num_seqs == 1 else f"{inputs.min_num_seqs} sequences"
    others = (
        ("graphs", inputs.graphs_bytes),
        ("bookkeeping", inputs.budgeted_bookkeeping_bytes),
        ("swap space", inputs.budgeted_swap_bytes),
    )
    named = "".join(f", {name} {format_bytes(size)}" for name, size in others if size)
    return (
        f"does not fit: weights {format_bytes(inputs.weights_bytes)}, activations "
        f"{format_bytes(inputs.activation_bytes)}, logits {format_bytes(inputs.logits_bytes)}"
        f"{named} and "
        f"the KV cache of {count} of {inputs.max_model_len} tokens "
        f"{format_bytes(kv_bytes)} make {format_bytes(inputs.needed_bytes)}; "
        f"--memory {inputs.request} gives {format_bytes(budget)}"
    )


def _remedies(inputs: PlanInputs, budget: int, need: int) -> str:
    """What makes it fit, with the other settings as they are; the least that does."""
    available = inputs.memory.available_bytes
    remedies = []
    if (left := inputs.budgeted_swap_bytes - (need - budget)) >= 0 and inputs.swap_bytes:
        has_blocks = left >= 2 * inputs.kv_bytes_per_block  # after rounding, too
        size = size_argument(left, round_up=False) if has_blocks else "0"
        remedies.append(f"lower --swap-space to {size}")
    if (longest := _longest_sequence(inputs, budget)) > 0:
        remedies.append(f"lower --max-model-len to {longest}")
    if (most := _most_sequences(inputs, need - budget)) >= inputs.min_num_seqs:
        remedies.append(f"lower --max-num-seqs to {most}")
    if need <= available:
        enough = size_argument(need)
        if parse_size(enough) > available:  # rounded beyond what there is
            enough = f"{need}B"
        remedies.append(f"raise --memory by {format_bytes(need - budget)} to {enough}")
    if remedies:
        return " or ".join(remedies)
    everything = size_argument(available, round_up=False)
    if (longest := _longest_sequence(inputs, parse_size(everything))) > 0:
        return f"raise --memory to {everything} and lower --max-model-len to {longest}"
    return (
        f"this device has {format_bytes(available)} available: "
        f"free {format_bytes(need - available)} or choose a smaller model"
    )


def _longest_sequence(inputs: PlanInputs, budget: int) -> int:
    """The largest max_model_len whose one sequence fits the budget; 0 or less: none does."""
    blocks = max(0, budget - inputs.fixed_bytes) // max(1, inputs.kv_bytes_per_block)
    return (blocks - inputs.num_extra_blocks) * inputs.block_size


def _most_sequences(inputs: PlanInputs, missing: int) -> int:
    """The largest max_num_seqs whose logits are `missing` bytes smaller; 0 or less: none is."""
    if not inputs.logits_bytes:
        return 0
    return (inputs.logits_bytes - missing) * inputs.max_num_seqs // inputs.logits_bytes
