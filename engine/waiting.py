"""Who starts next: tenants by what they were served, within a tenant by urgency."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from hal.engine.sequence import Sequence


@dataclass(slots=True)
class Tenant:
    """served: virtual token counter; waiting: by waiting_rank."""

    served: float = 0.0
    waiting: list[Sequence] = field(default_factory=list)


class WaitingQueue:
    """The tenant that was served least comes first; one that was away gets no credit for it.

    Source: virtual token counter (Sheng et al., Fairness in serving large language models, 2024).
    """

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._level = 0.0  # what the tenant that was last chosen had been served
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def has_tenants(self) -> bool:
        """Whether it matters who is served."""
        return len(self._tenants) > 1

    def add(self, seq: Sequence) -> None:
        name = seq.request.tenant
        if name not in self._tenants:
            self._forget_idle()
            self._tenants[name] = Tenant()
        tenant = self._tenants[name]
        if not tenant.waiting:
            tenant.served = max(tenant.served, self._level)
        insort(tenant.waiting, seq, key=_rank)
        self._size += 1

    def remove(self, seq: Sequence) -> None:
        waiting = self._tenants[seq.request.tenant].waiting
        index = bisect_left(waiting, _rank(seq), key=_rank)
        assert waiting[index] is seq
        del waiting[index]
        self._size -= 1

    def first(self) -> Sequence:
        """Who starts next; it stays in the queue."""
        active = [tenant for tenant in self._tenants.values() if tenant.waiting]
        chosen = min(active, key=lambda tenant: (tenant.served, tenant.waiting[0].waiting_rank))
        self._level = max(self._level, chosen.served)
        return chosen.waiting[0]

    def charge(self, name: str, num_tokens: float) -> None:
        """A tenant was served this many tokens."""
        if name in self._tenants:
            self._tenants[name].served += num_tokens
        else:
            self._tenants[name] = Tenant(self._level + num_tokens)

    def _forget_idle(self) -> None:
        """Drop tenants that would come back at the common level anyway."""
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.waiting or tenant.served > self._level
        }


def _rank(seq: Sequence) -> tuple[float, int, int]:
    return seq.waiting_rank
