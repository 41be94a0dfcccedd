"""What makes it fit: each remedy is the least change of one setting that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hal.config import AUTO
from hal.memory import memory_budget, size_argument
from hal.planning.search import fits, largest, longest_context, smallest_tp
from hal.planning.settings import PlanSettings
from hal.planning.sizing import Sizer, is_host
from hal.planning.target import PlanDevice, absent, larger_profiles
from hal.weights import UNQUANTIZED

_QUANTIZATIONS = ("int8", "int4")  # most precise first


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """`text` for people, `settings` to ask again with."""

    text: str
    settings: PlanSettings


@dataclass(frozen=True, slots=True)
class Remedies:
    """Remedies of one question whose answer is that it does not fit."""

    sizer: Sizer
    settings: PlanSettings
    device: PlanDevice

    def found(self) -> tuple[Remedy, ...]:
        """Single changes; where no setting alone helps, the first pair that does."""
        own = [*self._context(), *self._concurrency(), *self._memory()]
        own += [*self._kv(self.settings), *self._quantization(self.settings)]
        if not own:
            own = [*self._pair()][:1]
        return (*own, *self._more_devices(), *self._bigger_device())

    def _fits(self, settings: PlanSettings) -> bool:
        return fits(self.sizer, settings, self.device)

    def _context(self, base: PlanSettings | None = None) -> Iterator[Remedy]:
        settings = base or self.settings
        limit = settings.ctx or self.sizer.model.shape.max_position_embeddings
        ctx = longest_context(self.sizer, settings, self.device, limit - 1)
        if ctx:
            changed = replace(settings, ctx=ctx, typical=None)
            yield Remedy(text=f"lower --ctx to {ctx}", settings=changed)

    def _concurrency(self, base: PlanSettings | None = None) -> Iterator[Remedy]:
        settings = base or self.settings
        wanted = settings.concurrency or 1
        if wanted == 1:
            return
        count = largest(lambda n: self._fits(replace(settings, concurrency=n)), wanted - 1)
        if count:
            changed = replace(settings, concurrency=count)
            yield Remedy(text=f"lower --concurrency to {count}", settings=changed)

    def _memory(self) -> Iterator[Remedy]:
        inputs = self.sizer.size(self.settings, self.device).inputs
        available = inputs.memory.available_bytes
        if not memory_budget(inputs) < inputs.needed_bytes <= available:
            return
        num_shares = (self.settings.tp or 1) if is_host(self.device) else 1
        amount = size_argument(inputs.needed_bytes * num_shares)
        changed = replace(self.settings, memory=amount)
        if self._fits(changed):
            yield Remedy(text=f"raise --memory to {amount}", settings=changed)

    def _kv(self, base: PlanSettings) -> Iterator[Remedy]:
        if base.kv != AUTO:
            return
        changed = replace(base, kv="int8")  # fp8 takes as much, and is less precise
        if self._fits(changed):
            yield Remedy(text="--kv int8", settings=changed)

    def _quantization(self, base: PlanSettings) -> Iterator[Remedy]:
        """8 bit where that is enough, else 4 bit."""
        if base.quantization != UNQUANTIZED or self.sizer.model.stored is not None:
            return
        for name in _QUANTIZATIONS:
            changed = replace(base, quantization=name)
            if self._fits(changed):
                yield Remedy(text=f"--quantization {name}", settings=changed)
                return

    def _pair(self) -> Iterator[Remedy]:
        """Smaller weights with a smaller cache, or with less to remember."""
        starts: list[PlanSettings] = [self.settings]
        if self.sizer.model.stored is None and self.settings.quantization == UNQUANTIZED:
            starts = [replace(self.settings, quantization=name) for name in _QUANTIZATIONS]
        steps: list[Callable[[PlanSettings], Iterator[Remedy]]] = [
            self._kv,
            self._concurrency,
            self._context,
        ]
        for step in steps:
            for start in starts:
                for remedy in step(start):
                    name = start.quantization
                    first = "" if start is self.settings else f"--quantization {name} and "
                    yield Remedy(text=first + remedy.text, settings=remedy.settings)

    def _more_devices(self) -> Iterator[Remedy]:
        if not self.device.capabilities.is_accelerator:
            return
        tp = smallest_tp(self.sizer, self.settings, self.device, above=self.settings.tp or 1)
        if tp is not None:
            name = f"{tp}x{self.device.name}"
            yield Remedy(
                text=f"{tp} devices: --device {name}",
                settings=replace(self.settings, device=name, tp=tp),
            )

    def _bigger_device(self) -> Iterator[Remedy]:
        """The smallest profile with more memory that fits, as many of them."""
        tp = self.settings.tp or 1
        for profile in larger_profiles(self.device.capabilities.memory.total_bytes):
            device = absent(profile, tp)
            if fits(self.sizer, self.settings, device):
                name = f"{tp}x{profile.name}" if tp > 1 else profile.name
                yield Remedy(
                    text=f"a bigger device: --device {name}",
                    settings=replace(self.settings, device=name),
                )
                return
