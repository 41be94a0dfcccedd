"""One JSON line for each step: who ran, how full the KV pool was, what it took."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from hal.engine.batch import Batch
from hal.engine.scheduler import Scheduler
from hal.errors import ConfigError

Record = dict[str, object]


class StepTrace:
    """Writes a step's line when the step is over, or when the next one begins if it failed.

    step, start_s (since the first), seconds; ran: [request id, choice, tokens] of each sequence;
    num_waiting, num_preemptions (so far); blocks: used, cached, total; failed: the step was lost
    swaps, with a swap space: blocks copied out and in by this step, and blocks it holds
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._epoch = clock()
        self._open: Record | None = None

    def begin(self, batch: Batch, scheduler: Scheduler) -> None:
        """A step was scheduled and is about to run."""
        if self._open is not None:
            self._write({**self._open, "failed": True})
        blocks = scheduler.blocks
        self._open = {
            "step": batch.step,
            "start_s": round(self._clock() - self._epoch, 6),
            "ran": _who_runs(batch, scheduler),
            "num_waiting": scheduler.num_waiting,
            "num_preemptions": scheduler.num_preemptions,
            "blocks": {
                "used": blocks.num_used,
                "cached": blocks.num_cached,
                "total": blocks.num_usable,
            },
        }
        if blocks.swap is not None:
            self._open["swaps"] = {
                "out": 0 if batch.swaps is None else len(batch.swaps.outs),
                "in": 0 if batch.swaps is None else len(batch.swaps.ins),
                "held": blocks.swap.num_used,
            }

    def end(self) -> None:
        """The step that began is over."""
        assert self._open is not None
        began = self._open["start_s"]
        assert isinstance(began, float)
        seconds = round(self._clock() - self._epoch - began, 6)
        self._write({**self._open, "seconds": seconds})
        self._open = None

    def _write(self, record: Record) -> None:
        self._stream.write(json.dumps(record, separators=(",", ":")) + "\n")


def open_trace(path: Path) -> StepTrace:
    """Raises ConfigError if the file cannot be written. A file of that name is replaced."""
    try:
        stream = path.open("w", buffering=1, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--trace {path} cannot be written: {error.strerror}") from error
    trace = StepTrace(stream)
    weakref.finalize(trace, stream.close)
    return trace


def _who_runs(batch: Batch, scheduler: Scheduler) -> list[list[object]]:
    seqs = [scheduler.slots.seqs[slot] for slot in batch.slots.tolist()]
    rows = zip(seqs, batch.q_lens.tolist(), strict=True)
    return [[seq.request.request_id, seq.index, n] for seq, n in rows if seq is not None]
