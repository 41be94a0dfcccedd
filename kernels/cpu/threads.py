"""Where the threads of the native kernels run, and whose memory node a weight lies on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from hal.errors import ConfigError
from hal.kernels.cpu import native

Binding = tuple[tuple[int, ...], ...]


class ThreadPlacement:
    """Of this process: its kernels share one pool of threads, whatever the number of engines."""

    def __init__(self) -> None:
        self._workers: Binding = ()
        self._num_nodes = 1

    def bind(self, workers: Binding, num_nodes: int, *, is_asked_for: bool) -> None:
        """Keep thread i + 1 of the pool on the CPUs workers[i].

        What an earlier engine of this process made of it stays, unless the user asks for another:
        that raises ConfigError, as does a refusal of the system.
        """
        if workers == self._workers or (self._workers and not is_asked_for):
            return
        if self._workers:
            raise ConfigError(
                f"cpu_affinity: an engine of this process has its threads on CPUs "
                f"{_shown(self._workers)}, this one asks for {_shown(workers)}. Give both the same "
                "setting, or run them in processes of their own"
            )
        try:
            failure = native.load().bind_threads([list(cpus) for cpus in workers])
        except (ImportError, AttributeError):
            return  # no native threads to bind; those of torch keep to what the caller keeps to
        if failure:
            raise ConfigError(
                f"cpu_affinity: the system refuses to keep threads on CPUs {_shown(workers)}: "
                f"{os.strerror(failure)}. Use --cpu-affinity none"
            )
        self._workers, self._num_nodes = workers, num_nodes

    def prepare(self, address: int, num_bytes: int) -> None:
        """Fresh memory of a weight, before anything is written to it.

        Products cut a weight into equal runs of rows, a run for each thread to begin with, so each
        thread's part of the bytes goes to its node.
        """
        native.load().advise_huge_pages(address, num_bytes)
        if self._num_nodes > 1:
            native.load().touch_pages(address, num_bytes, torch.get_num_threads())


def _shown(workers: Sequence[Sequence[int]]) -> str:
    return " | ".join(",".join(map(str, cpus)) for cpus in workers) or "of the system's choice"


PLACEMENT = ThreadPlacement()
