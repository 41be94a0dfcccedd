"""Decode steps that are recorded once for each number of sequences and then replayed."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from hal.device import Capabilities
from hal.engine.batch import Batch, Int32
from hal.engine.step_inputs import DecodeInputs, DecodeMemory, DecodeShape, StepInputs
from hal.errors import UnsupportedError

_logger = logging.getLogger("hal")

# A host's steps of more sequences take so long that what a replay saves no longer shows.
_MOST_HOST_ROWS = 32

# What a recording keeps of one launch. On a host its arguments, at most; on an accelerator a
# reserve, since drivers do not say and no measurement is at hand.
_HOST_LAUNCH_BYTES = 512
_ACCELERATOR_LAUNCH_BYTES = 16 << 10

# Launches of a layer with every op on its own, and of a step outside of its layers.
_LAYER_LAUNCHES = 10
_STEP_LAUNCHES = 8


def graph_sizes(caps: Capabilities, max_num_seqs: int) -> tuple[int, ...]:
    """Rows of the steps that are captured, ascending.

    Capturing on a host costs what one step's launches cost, so each size has its own graph. On an
    accelerator each takes memory and time: powers of two, with padding between.
    """
    if not caps.is_accelerator:
        return tuple(range(1, min(max_num_seqs, _MOST_HOST_ROWS) + 1))
    powers = (1 << exponent for exponent in range(max_num_seqs.bit_length()))
    return tuple(sorted({*powers, max_num_seqs}))


def graphs_bytes(caps: Capabilities, shape: DecodeShape, num_layers: int) -> int:
    """Device memory of the graphs of all sizes with their inputs, for the memory plan."""
    of_launch = _ACCELERATOR_LAUNCH_BYTES if caps.is_accelerator else _HOST_LAUNCH_BYTES
    num_launches = _LAYER_LAUNCHES * num_layers + _STEP_LAUNCHES
    return len(graph_sizes(caps, shape.num_rows)) * num_launches * of_launch + shape.num_bytes


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: DecodeInputs
    replay: Callable[[], None]


class DecodeGraphs:
    """Replays for the steps that it knows. Records nothing after the first refusal.

    run: submits the step that it is given, reading its inputs where they lie
    plan: what is computed on the host before each such step
    """

    def __init__(
        self,
        memory: DecodeMemory,
        run: Callable[[StepInputs], None],
        plan: Callable[[StepInputs], None],
    ) -> None:
        self._memory = memory
        self._run = run
        self._plan = plan
        self._caps = memory.device.capabilities
        self._sizes = graph_sizes(self._caps, memory.shape.num_rows)
        self._graphs: dict[int, _Graph] = {}
        self.refusal: str | None = None

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def warm_up(self) -> None:
        """Capture what must be captured before memory is full: on a host only the first size,
        which shows whether it can be done at all."""
        sizes = self._sizes[::-1] if self._caps.is_accelerator else self._sizes[:1]
        for num_rows in sizes:
            if self.refusal is None:
                self._capture(num_rows)

    def try_step(self, batch: Batch, tables: Int32) -> bool:
        """Submit the batch by a replay; False where it is none of one token for each sequence, or
        of too many sequences, or where capturing was refused."""
        if not batch.num_seqs == batch.num_tokens == batch.num_samples:
            return False
        index = bisect_left(self._sizes, batch.num_seqs)
        if index == len(self._sizes):
            return False
        num_rows = self._sizes[index]
        graph = self._graphs.get(num_rows)
        if graph is None:
            if self.refusal is not None or (graph := self._capture(num_rows)) is None:
                return False
        graph.inputs.fill(batch, tables)
        self._plan(graph.inputs.step)
        graph.replay()
        return True

    def _capture(self, num_rows: int) -> _Graph | None:
        inputs = DecodeInputs(self._memory, num_rows)
        inputs.fill_padding()
        self._plan(inputs.step)
        if self._caps.is_accelerator:
            self._run(inputs.step)  # compiles, and takes what its libraries need
            self._memory.device.synchronize()
        try:
            replay = self._memory.device.capture(lambda: self._run(inputs.step))
        except UnsupportedError as error:
            self.refusal = f"capture was refused: {error.message}"
            _logger.warning("graphs off: %s", self.refusal)
            return None
        graph = self._graphs[num_rows] = _Graph(inputs, replay)
        return graph
