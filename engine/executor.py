"""What the engine needs from whatever runs a Batch: in-process, N ranks, or a shadow in tests."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hal.engine.batch import Batch, StepResult
from hal.errors import EngineError


class PendingStep(Protocol):
    """A step that was submitted and may still run."""

    def wait(self) -> StepResult:
        """Block until the step is done. Raises what the step raised."""


class Executor(Protocol):
    """Runs batches in the order of submission.

    Keeps per slot: the block table (all NULL_BLOCK at first) and the last sampled token. A step
    applies block_updates, then swaps, then block_copies, then writes K/V and samples.
    """

    @property
    def max_num_seqs(self) -> int:
        """Slots it keeps; every slot in a Batch is below."""

    @property
    def num_blocks(self) -> int:
        """KV blocks it keeps, NULL_BLOCK included; every block id in a Batch is below."""

    @property
    def vocab_size(self) -> int:
        """Token ids it accepts in prompts and biases are below."""

    def submit(self, batch: Batch) -> PendingStep:
        """Start one step. Raises if it could not be started."""


def check_result(batch: Batch, result: StepResult) -> None:
    """Raise EngineError unless the answer has one token, or an error, for each sampled row."""
    num_rows = batch.num_samples
    if result.token_ids.shape != (num_rows, 1) or result.row_errors.shape != (num_rows,):
        raise EngineError(
            f"the executor answered tokens {result.token_ids.shape} and row errors "
            f"{result.row_errors.shape} to {num_rows} sampled rows; please report this"
        )
    num_hidden = 0 if batch.pools is None else len(batch.pools.rows)
    if num_hidden and (result.hidden is None or len(result.hidden) != num_hidden):
        raise EngineError(
            f"the executor owes the hidden states of {num_hidden} rows; please report this"
        )
    if not np.all((result.num_tokens == 1) | result.row_errors):
        raise EngineError("not supported yet: several or no tokens per sequence and step")
