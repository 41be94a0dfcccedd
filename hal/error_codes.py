"""What every error code means, what it shows and what helps; docs/errors.md is made of it.

A code's exit code is that of its class in `hal.errors`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hal.errors import (
    ENGINE_DIED,
    ENGINE_HUNG,
    ENGINE_SILENT,
    NOT_FINITE,
    PINS_FULL,
    RANK_LOST,
    TOO_LATE,
    ConfigError,
    ContextLengthError,
    DeviceOutOfMemory,
    DeviceUnavailable,
    EngineError,
    GrammarError,
    HalError,
    MemoryPlanError,
    ModelError,
    RequestError,
    SelectionError,
    TokenizerError,
    UnsupportedError,
    WeightsError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """Status and `error.code` of the answer to a request that meets the error."""

    status: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCode:
    """One stable code.

    shows: the names, values and numbers that every message with it carries
    remedies: what the reader can do; the message has the one that fits, with computed values
    http: None where it ends a start, so that no client can meet it
    """

    error: type[HalError]
    code: str
    meaning: str
    shows: str
    remedies: str
    http: HttpAnswer | None = None


_INVALID = HttpAnswer(status=400, code="invalid_value")
_GONE = HttpAnswer(status=503, code="engine_unavailable")
_LOST = HttpAnswer(status=500, code="step_failed")

ERROR_CODES = (
    ErrorCode(
        error=ConfigError,
        code=ConfigError.code,
        meaning="A setting is wrong, unknown, or contradicts another.",
        shows="the setting, its value, the values that are allowed",
        remedies="Use a value of the range or list in the message; it names the nearest one.",
    ),
    ErrorCode(
        error=UnsupportedError,
        code=UnsupportedError.code,
        meaning="A known setting or model that this version does not honour. Never swallowed.",
        shows="the setting and its value, or the model's feature",
        remedies="Leave it out or take the alternative that the message names.",
        http=HttpAnswer(status=400, code="unsupported_parameter"),
    ),
    ErrorCode(
        error=DeviceUnavailable,
        code=DeviceUnavailable.code,
        meaning="The device named by --device cannot be used.",
        shows="the probe's reason; the nearest device that works",
        remedies="Run the command in the message, or choose the device that it names. `hal-info` "
        "has the whole look at the machine.",
    ),
    ErrorCode(
        error=ModelError,
        code=ModelError.code,
        meaning="The model is missing, is no model, or has an unknown architecture.",
        shows="the folder or hub id; the file or config key that is wrong; the known architectures",
        remedies="Correct the path, fetch the files that are missing, or choose a model of a known "
        "architecture.",
    ),
    ErrorCode(
        error=WeightsError,
        code=WeightsError.code,
        meaning="A weight file or a tensor is damaged, missing, unexpected, or of another shape.",
        shows="file, tensor, the shape or size found and the one expected",
        remedies="Fetch the file again; check that config.json belongs to these weights.",
    ),
    ErrorCode(
        error=TokenizerError,
        code=TokenizerError.code,
        meaning="The tokenizer or the chat template is missing or cannot be used.",
        shows="the file, or the template's own error",
        remedies="Fetch tokenizer.json; give --chat-template; or send token ids.",
        http=_INVALID,
    ),
    ErrorCode(
        error=MemoryPlanError,
        code=MemoryPlanError.code,
        meaning="The memory plan does not fit the device. Nothing was allocated.",
        shows="bytes of weights, activations, logits and KV cache; what they make; what --memory "
        "gives",
        remedies="The computed ones of the message: --max-model-len, --memory, or memory to free.",
    ),
    ErrorCode(
        error=DeviceOutOfMemory,
        code=DeviceOutOfMemory.code,
        meaning="The device refused an allocation: while loading, or in a step. A failed step ends "
        "its own requests with this code (exit code 6 then); three in a row end the engine.",
        shows="what was allocated; bytes wanted, free and held here",
        remedies="Lower --memory, --max-model-len or --max-num-seqs, or choose a smaller model.",
        http=_LOST,
    ),
    ErrorCode(
        error=RequestError,
        code=RequestError.code,
        meaning="One request is wrong. The others are unharmed.",
        shows="the field, its value, its range",
        remedies="Correct the field.",
        http=_INVALID,
    ),
    ErrorCode(
        error=ContextLengthError,
        code=ContextLengthError.code,
        meaning="The prompt, or prompt and max_tokens, do not fit the context. Nothing is cut.",
        shows="tokens of the prompt, max_tokens, the context",
        remedies="Shorten the prompt, lower max_tokens or leave it out, raise --max-model-len.",
        http=HttpAnswer(status=400, code="context_length_exceeded"),
    ),
    ErrorCode(
        error=RequestError,
        code=TOO_LATE,
        meaning="A request could no longer start within its timeout_s, so it was dropped from the "
        "queue before it cost a prefill.",
        shows="seconds that it waited, its timeout_s",
        remedies="Give it more time, send fewer requests at once, or give it a priority below that "
        "of others.",
        http=HttpAnswer(status=504, code="deadline_exceeded"),
    ),
    ErrorCode(
        error=RequestError,
        code=PINS_FULL,
        meaning="A prefix cannot be pinned: too large a part of the KV blocks would be kept "
        "from all that run.",
        shows="blocks of the prefix, blocks pinned already, the most that may be, and why",
        remedies="Unpin another prefix, pin fewer tokens, wait for the request that needs the "
        "blocks, or give the engine more memory.",
        http=_INVALID,
    ),
    ErrorCode(
        error=GrammarError,
        code=GrammarError.code,
        meaning="A schema, regex or grammar of guided decoding is wrong, uses what is not "
        "supported, or needs more than its limits of time and memory.",
        shows="the keyword, place or limit",
        remedies="Leave the keyword out, correct the place, or ask for something simpler.",
        http=HttpAnswer(status=400, code="invalid_schema"),
    ),
    ErrorCode(
        error=SelectionError,
        code=SelectionError.code,
        meaning="No kernel can run an op of the model on this device with these settings.",
        shows="the op and its problem; every kernel with the rule that it failed and the value",
        remedies="Lift what a reason names: --strict, --deterministic, --kernel, --dtype.",
    ),
    ErrorCode(
        error=EngineError,
        code=EngineError.code,
        meaning="A step of the engine failed, or the engine stopped: what a bug looks like.",
        shows="the step, the exception, how many sequences it ended",
        remedies="The log has the traceback: please report it.",
        http=_LOST,
    ),
    ErrorCode(
        error=EngineError,
        code=ENGINE_DIED,
        meaning="The engine process of hal-serve died.",
        shows="its process id; the signal or exit code",
        remedies="Its own messages stand above in the log. If the system ran out of memory, lower "
        "--memory or --max-num-seqs.",
        http=_GONE,
    ),
    ErrorCode(
        error=EngineError,
        code=ENGINE_SILENT,
        meaning="The engine process gave no sign of life: it was stopped or starved.",
        shows="its process id; seconds of --heartbeat-timeout",
        remedies="Start again; give the machine more cores or raise --heartbeat-timeout.",
        http=_GONE,
    ),
    ErrorCode(
        error=EngineError,
        code=ENGINE_HUNG,
        meaning="A step of the engine did not end.",
        shows="the step, the process id, seconds of --step-timeout",
        remedies="If the device is only slow, raise --step-timeout or lower "
        "--max-num-batched-tokens; if it hangs, look at its driver's log.",
        http=_GONE,
    ),
    ErrorCode(
        error=EngineError,
        code=RANK_LOST,
        meaning="A rank of --tensor-parallel-size died, did not start, or did not answer. All "
        "requests of the engine end with it.",
        shows="the rank, its process id, the signal or exit code, or the seconds waited",
        remedies="Its own messages stand above in the log. If the system ran out of memory, lower "
        "--memory or --max-num-seqs. Start again.",
        http=_GONE,
    ),
    ErrorCode(
        error=EngineError,
        code=NOT_FINITE,
        meaning="The logits of a request were not finite, so it was ended. Others go on.",
        shows="the number of the output token",
        remedies="Try a wider --dtype; check the weights.",
        http=HttpAnswer(status=500, code="numerical_error"),
    ),
)
