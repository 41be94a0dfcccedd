"""The collective of torch's gloo: sockets on this machine, for where nothing quicker is built."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d

from hal.collective import Collective
from hal.errors import RANK_LOST, EngineError
from hal.share import Share
from hal.tensor import Tensor

_LOOPBACK = "127.0.0.1"


class GlooCollective(Collective):
    """A group of its own: torch's default group stays the user's.

    meeting: a file that does not exist yet, the same for all ranks
    timeout_s: of each operation; raises EngineError behind it
    """

    name = "gloo"
    is_capturable = False

    def __init__(self, share: Share, meeting: str, timeout_s: float) -> None:
        self._share = share
        self._is_lost = ""
        gloo: Any = c10d.ProcessGroupGloo  # torch has no types for its options
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=_LOOPBACK)]
        options._timeout = timedelta(seconds=timeout_s)
        store = c10d.PrefixStore("hal", c10d.FileStore(meeting, share.size))
        try:
            self._group: Any = gloo(store, share.rank, share.size, options)
        except RuntimeError as error:
            raise EngineError(self._words(error), code=RANK_LOST) from error

    @property
    def rank(self) -> int:
        return self._share.rank

    @property
    def size(self) -> int:
        return self._share.size

    def all_reduce(self, x: Tensor) -> None:
        assert isinstance(x, torch.Tensor), "ranks of a CPU group hold torch tensors"
        total = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        self._run(lambda: self._group.allreduce([total]))
        if total is not x:
            x.copy_(total)

    def all_gather(self, x: Tensor, out: Tensor) -> None:
        assert isinstance(x, torch.Tensor) and isinstance(out, torch.Tensor)
        columns = [Share(rank, self.size).of(out.shape[1]) for rank in range(self.size)]
        widest = x.new_zeros(x.shape[0], len(columns[0]))
        widest[:, : x.shape[1]] = x
        parts = [torch.empty_like(widest) for _ in columns]
        self._run(lambda: self._group.allgather([parts], [widest]))
        for own, part in zip(columns, parts, strict=True):
            out[:, own.start : own.stop] = part[:, : len(own)]

    def broadcast(self, x: Tensor, root: int = 0) -> None:
        self._run(lambda: self._group.broadcast(x, root))

    def limit_waits(self, timeout_s: float) -> None:
        self._group.set_timeout(timedelta(seconds=timeout_s))

    def check(self) -> None:
        if self._is_lost:
            raise EngineError(self._is_lost, code=RANK_LOST)

    def abort(self) -> None:
        self._is_lost = self._is_lost or "this rank has left the group"

    def _run(self, start: Callable[[], Any]) -> None:
        self.check()
        try:
            start().wait()
        except RuntimeError as error:
            self._is_lost = self._words(error)
            raise EngineError(self._is_lost, code=RANK_LOST) from error

    def _words(self, error: RuntimeError) -> str:
        return f"gloo, rank {self.rank} of {self.size}: {str(error).splitlines()[0]}"
