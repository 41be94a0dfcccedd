"""Frozen settings, and `resolve()`, which turns them into choices that each carry a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hal.cache_policy import DEFAULT_TTL_S, CacheOrder, CachePolicy, parse_policy
from hal.device import Capabilities, Feature
from hal.dtypes import DType, parse_dtype
from hal.errors import ConfigError, UnsupportedError
from hal.kv import KV_FORMATS
from hal.memory import MemoryRequest, parse_memory, parse_swap_space
from hal.weights import UNQUANTIZED, WeightFormat, find_format

DEFAULT_MODEL = "hal-tiny"
AUTO = "auto"
DEFAULT_MAX_NUM_SEQS = 64
DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_BLOCK_SIZE = 16

NO_CAPTURE = "{} has no graph capture"

_FLOATS = (DType.FLOAT32.label, DType.BFLOAT16.label, DType.FLOAT16.label)
_OPTIONAL_COUNTS = ("max_model_len", "max_num_batched_tokens", "block_size", "threads")
_COUNTS = ("max_num_seqs", "tensor_parallel_size", *_OPTIONAL_COUNTS)
# How ranks talk; auto: shared memory where it can be used.
COLLECTIVES = (AUTO, "shared-memory", "gloo")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the user asked for; `None` and "auto" are filled by `resolve()`.

    memory: fraction ("0.9"), size ("24GiB") or what to leave free ("reserve:8GiB").
    kernel: overrides "OP=NAME", e.g. "linear=torch".
    quantization: how weights are stored, rounded while they are loaded; see hal.weights.
    cache: keep packed and quantised weights on disk, and start from them next time.
    static_batching: no request starts before all that run are done: a baseline to compare with.
    trace: a file that gets one JSON line for each step.
    cache_policy, cache_ttl: which cached prefix goes first; see hal.cache_policy.
    cpu_affinity: "auto", "none" or the CPUs for the threads, "0-7,16-23"; see hal.devices.affinity.
    kv_cache_dtype: "auto" (the model's), its name, or a format of hal.kv.KV_FORMATS.
    inter_token_target_ms: prefill chunks beside decodes are cut so that a step takes no longer.
    max_pinned_share: the most of the KV blocks that pinned prefixes may keep, 0 to 1.
    swap_space: host memory for KV blocks that left the device, "8GiB" or 8 (GiB, as in vLLM).
    tensor_parallel_size: ranks that share the model, each a process; threads and memory are those
        of all ranks together. collective: one of COLLECTIVES.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = UNQUANTIZED
    memory: str | float = 0.9
    max_model_len: int | None = None
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    enforce_eager: bool = False
    prefix_caching: bool = True
    chunked_prefill: bool = True
    static_batching: bool = False
    trace: Path | None = None
    cache_policy: str = CacheOrder.LRU.value
    cache_ttl: float = DEFAULT_TTL_S
    kv_cache_dtype: str = AUTO
    swap_space: str | float = "0"
    inter_token_target_ms: float | None = None
    max_pinned_share: float = 0.5
    seed: int = 0
    chat_template: Path | None = None
    offline: bool = False
    kernel: tuple[str, ...] = ()
    strict: bool = False
    deterministic: bool = False
    threads: int | None = None
    cpu_affinity: str = AUTO
    cache: bool = True
    tensor_parallel_size: int = 1
    collective: str = AUTO

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL_COUNTS:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.kv_cache_dtype not in (AUTO, *_FLOATS, *KV_FORMATS):
            raise UnsupportedError(
                f"not supported yet: kv_cache_dtype={self.kv_cache_dtype!r}; choose {AUTO}, the "
                f"model's dtype, or {', '.join(KV_FORMATS)}"
            )
        if self.collective not in COLLECTIVES:
            raise ConfigError(
                f"collective must be one of {', '.join(COLLECTIVES)}; got {self.collective!r}"
            )
        find_format(self.quantization)
        parse_swap_space(self.swap_space)
        check_pinned_share(self.max_pinned_share)
        if self.inter_token_target_ms is not None:
            check_token_target(self.inter_token_target_ms / 1e3, self.chunked_prefill)
        parse_policy(self.cache_policy, self.cache_ttl)
        for override in self.kernel:
            if override.count("=") != 1:
                raise ConfigError(f"kernel override {override!r} is not OP=NAME")
        if len(self.kernel_overrides) < len(self.kernel):
            raise ConfigError(f"kernel overrides {', '.join(self.kernel)} name an op twice")

    @property
    def kernel_overrides(self) -> dict[str, str]:
        return dict(override.split("=") for override in self.kernel)

    @classmethod
    def field_names(cls) -> frozenset[str]:
        return frozenset(f.name for f in fields(cls))


def check_pinned_share(share: float) -> None:
    """Raises ConfigError."""
    if not 0 <= share <= 1:
        raise ConfigError(f"max_pinned_share is a share, 0 to 1; got {share}")


def check_token_target(seconds: float, chunked_prefill: bool) -> None:
    """Raise ConfigError unless chunks can be cut to keep such a time between two tokens."""
    if not 0 < seconds < math.inf:
        raise ConfigError(f"the target between two tokens must be above 0; got {seconds:g} s")
    if not chunked_prefill:
        raise ConfigError(
            "a target between two tokens limits the chunks of a prefill, but chunked prefill is "
            "off: leave it on, or leave --inter-token-target-ms out"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One resolved setting and why it has this value."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What resolve() must know of a model."""

    dtype: DType
    max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """Every setting filled in; `choices` says why. Logged once, shown by explain().

    weights, head_weights: of the layers' matrices and of the one that makes logits; None: in dtype
    kv_dtype: of the KV cache; None: in dtype
    use_graphs: as far as the device goes; the kernels that are chosen later must agree
    """

    config: EngineConfig
    dtype: DType
    weights: WeightFormat | None
    head_weights: WeightFormat | None
    kv_dtype: DType | None
    memory: MemoryRequest
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    prefix_caching: bool
    cache_policy: CachePolicy
    chunked_prefill: bool
    swap_bytes: int
    use_graphs: bool
    choices: tuple[Choice, ...]

    def without_graphs(self, reason: str) -> ResolvedConfig:
        """The same, and why decode steps run eagerly."""
        off = Choice("graphs", "off", reason)
        choices = tuple(off if choice.name == off.name else choice for choice in self.choices)
        return replace(self, use_graphs=False, choices=choices)


def resolve(config: EngineConfig, caps: Capabilities, model: ModelLimits) -> ResolvedConfig:
    """Fill every open setting for this device and model; raises ConfigError, never guesses."""
    dtype, dtype_reason = _resolve_dtype(config.dtype, caps, model.dtype)
    max_model_len, len_reason = _resolve_max_model_len(config, model)
    max_batched, batched_reason = _resolve_batched_tokens(config, max_model_len)
    use_graphs, graphs_reason = _resolve_graphs(config, caps)
    weights, weights_reason = _resolve_weights(config.quantization)
    kv_dtype, kv_reason = _resolve_kv(config.kv_cache_dtype, caps, dtype)
    choices = (
        Choice("dtype", str(dtype), dtype_reason),
        Choice("quantization", config.quantization, weights_reason),
        Choice("kv_cache_dtype", str(kv_dtype or dtype), kv_reason),
        Choice("max_model_len", str(max_model_len), len_reason),
        Choice("max_num_batched_tokens", str(max_batched), batched_reason),
        Choice("block_size", *_resolve_block_size(config)),
        Choice("graphs", "on" if use_graphs else "off", graphs_reason),
    )
    return ResolvedConfig(
        config=config,
        dtype=dtype,
        weights=weights,
        head_weights=None if weights is None else weights.head,
        kv_dtype=kv_dtype,
        memory=parse_memory(config.memory),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max_batched,
        block_size=config.block_size or DEFAULT_BLOCK_SIZE,
        prefix_caching=config.prefix_caching,
        cache_policy=parse_policy(config.cache_policy, config.cache_ttl),
        chunked_prefill=config.chunked_prefill,
        swap_bytes=parse_swap_space(config.swap_space),
        use_graphs=use_graphs,
        choices=choices,
    )


def _resolve_dtype(wanted: str, caps: Capabilities, stored: DType) -> tuple[DType, str]:
    if wanted != "auto":
        dtype = parse_dtype(wanted)
        if dtype.label not in _FLOATS:
            raise ConfigError(
                f"dtype {dtype} cannot hold activations; choose float32, bfloat16 or float16"
            )
        return dtype, "set by the user"
    return _auto_dtype(caps, stored)


def _auto_dtype(caps: Capabilities, stored: DType) -> tuple[DType, str]:
    has_bf16 = Feature.BF16_MMA in caps.features
    if stored is DType.FLOAT16 and not caps.is_accelerator:
        if has_bf16:
            return DType.BFLOAT16, (
                "checkpoint is float16; this CPU multiplies bfloat16 natively, float16 8x slower"
            )
        return DType.FLOAT32, "checkpoint is float16; this CPU has no 16-bit matrix instructions"
    if stored is DType.BFLOAT16 and not has_bf16:
        if caps.is_accelerator and Feature.FP16_MMA in caps.features:
            return DType.FLOAT16, (
                f"checkpoint is bfloat16; {caps.arch} has float16 matrix instructions only "
                "(weights above 65504 are refused at load)"
            )
        return DType.FLOAT32, f"checkpoint is bfloat16; {caps.arch} has no 16-bit matrix math"
    if stored in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16):
        return stored, "as stored in the checkpoint"
    return DType.FLOAT32, f"checkpoint is {stored}; activations need a float type"


def _resolve_weights(wanted: str) -> tuple[WeightFormat | None, str]:
    weights = find_format(wanted)
    if weights is None:
        return None, "weights are stored in dtype"
    return weights, (
        f"set by the user; the matrix that makes logits is {weights.head}, "
        "those only looked up keep dtype"
    )


def _resolve_kv(wanted: str, caps: Capabilities, dtype: DType) -> tuple[DType | None, str]:
    if wanted == AUTO:
        return None, "as the model"
    if wanted == str(dtype):
        return None, "set by the user; the model's own"
    if wanted not in KV_FORMATS:
        raise UnsupportedError(
            f"not supported yet: kv_cache_dtype={wanted!r} for a model in {dtype}; choose auto, "
            f"{dtype} or {', '.join(KV_FORMATS)}"
        )
    reason = "set by the user; a scale for each token and head"
    if wanted == "fp8" and Feature.FP8_FNUZ_MMA in caps.features:
        reason += f"; codes are OCP e4m3, also on {caps.arch}, whose own fp8 is FNUZ"
    return KV_FORMATS[wanted], reason


def _resolve_max_model_len(config: EngineConfig, model: ModelLimits) -> tuple[int, str]:
    limit = model.max_position_embeddings
    if config.max_model_len is None:
        return limit, "the model's max_position_embeddings"
    if config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is above the model's context of {limit} tokens; "
            f"lower it to {limit} or less"
        )
    return config.max_model_len, "set by the user"


def _resolve_batched_tokens(config: EngineConfig, max_model_len: int) -> tuple[int, str]:
    wanted = config.max_num_batched_tokens
    floor = config.max_num_seqs
    if wanted is not None:
        if config.chunked_prefill and wanted < floor:
            raise ConfigError(
                f"max_num_batched_tokens {wanted} is below max_num_seqs {floor}: a decode step of "
                f"all sequences would not fit. Raise it to {floor} or lower max_num_seqs"
            )
        if not config.chunked_prefill and wanted < max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens {wanted} is below max_model_len {max_model_len} while "
                "chunked prefill is off; raise it, lower max_model_len, or turn chunks on"
            )
        return wanted, "set by the user"
    if not config.chunked_prefill:
        return max(max_model_len, floor), "max_model_len, because chunked prefill is off"
    if max_model_len <= DEFAULT_BATCHED_TOKENS:
        return max(max_model_len, floor), "a whole prompt fits one step"
    return max(DEFAULT_BATCHED_TOKENS, floor), "default step budget; longer prompts run in chunks"


def _resolve_block_size(config: EngineConfig) -> tuple[str, str]:
    if config.block_size is None:
        return str(DEFAULT_BLOCK_SIZE), "default: little is wasted in a sequence's last block"
    return str(config.block_size), "set by the user"


def _resolve_graphs(config: EngineConfig, caps: Capabilities) -> tuple[bool, str]:
    if config.enforce_eager:
        return False, "enforce_eager is set"
    if Feature.GRAPHS not in caps.features:
        return False, NO_CAPTURE.format(caps.name)
    return True, "decode steps are recorded once for each number of sequences, then replayed"
