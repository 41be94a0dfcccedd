"""What a user asks of a plan, checked; `None` and "auto" are filled as start-up fills them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hal.config import AUTO, DEFAULT_MAX_NUM_SEQS, EngineConfig
from hal.errors import ConfigError
from hal.kv import KV_FORMATS
from hal.planning.quantization import planned_scheme
from hal.weights import UNQUANTIZED

KV_TYPES = (AUTO, *KV_FORMATS)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)(k|m)?")
_MULTIPLES = {None: 1, "k": 1024, "m": 1024 * 1024}
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """One question. Names that `hal-serve` has mean the same there.

    ctx: longest prompt + answer in tokens; None: the model's limit
    concurrency: sequences of ctx tokens that must fit at once; None: one, as start-up needs
    typical: tokens of a usual sequence; None: a quarter of ctx
    quantization: of a checkpoint that is not quantised yet
    tp: devices that share the model; None: all that `device` names
    """

    model: str
    device: str = "auto"
    ctx: int | None = None
    concurrency: int | None = None
    typical: int | None = None
    kv: str = AUTO
    quantization: str = UNQUANTIZED
    tp: int | None = None
    dtype: str = "auto"
    memory: str | float = 0.9
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kernel: tuple[str, ...] = ()
    strict: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in (
            *("ctx", "concurrency", "typical", "tp"),
            *("max_num_seqs", "max_num_batched_tokens", "block_size"),
        ):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or value < 1
            ):
                raise ConfigError(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.kv not in KV_TYPES:
            raise ConfigError(f"--kv {self.kv!r} is not known; choose {', '.join(KV_TYPES)}")
        planned_scheme(self.quantization)
        if self.concurrency and self.max_num_seqs and self.concurrency > self.max_num_seqs:
            raise ConfigError(
                f"concurrency {self.concurrency} is above max_num_seqs {self.max_num_seqs}: so "
                "many sequences never run at once. Raise max_num_seqs or lower concurrency"
            )
        if self.ctx and self.typical and self.typical > self.ctx:
            raise ConfigError(
                f"typical {self.typical} is above ctx {self.ctx}; lower it to {self.ctx} or less"
            )

    @property
    def slots(self) -> int:
        """max_num_seqs: as many as must run at once, else start-up's default."""
        return self.max_num_seqs or self.concurrency or DEFAULT_MAX_NUM_SEQS

    def typical_of(self, length: int) -> int:
        """Tokens of a usual sequence where the longest has `length`."""
        return self.typical or max(1, length // 4)

    def engine_config(self) -> EngineConfig:
        """The start-up settings that this asks about; raises ConfigError."""
        return EngineConfig(
            model=self.model,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv,
            kernel=tuple(self.kernel),
            strict=self.strict,
            deterministic=self.deterministic,
            memory=self.memory,
            max_model_len=self.ctx,
            max_num_seqs=self.slots,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=self.block_size,
        )


def parse_count(text: str) -> int:
    """Tokens or sequences: `8192`, `8k`; raises ConfigError, also for zero and less."""
    match = _COUNT.fullmatch(text.strip().lower())
    value = float(match.group(1)) * _MULTIPLES[match.group(2)] if match else 0.0
    if not 1 <= value <= _MAX_COUNT or value != int(value):
        raise ConfigError(f"{text!r} is not a whole number of at least 1, like 64 or 8k")
    return int(value)
