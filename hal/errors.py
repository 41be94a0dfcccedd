"""Every error that a user can meet, with a stable code.

    HalError
    |-- ConfigError              HAL-E1xx   a setting is wrong or not honoured           exit 2
    |   |-- UnsupportedError     HAL-E11x   known, but not supported (yet) here          exit 2
    |   `-- DeviceUnavailable    HAL-E12x   the requested device cannot be used          exit 2
    |-- ModelError               HAL-E2xx   the model folder cannot be used              exit 3
    |   |-- WeightsError         HAL-E21x   a tensor or a weight file is wrong           exit 3
    |   `-- TokenizerError       HAL-E22x   tokenizer or chat template                   exit 3
    |-- MemoryPlanError          HAL-E3xx   it does not fit; the message has the remedy  exit 4
    |   `-- DeviceOutOfMemory    HAL-E31x   an allocation failed while running           exit 4
    |-- RequestError             HAL-E4xx   one request is wrong; others are unharmed    HTTP 400
    |   |-- ContextLengthError   HAL-E41x   prompt or max_tokens do not fit the context  HTTP 400
    |   `-- GrammarError         HAL-E43x   a schema, regex or grammar cannot be followed HTTP 400
    |-- SelectionError           HAL-E5xx   no kernel can run an op; lists every reason  exit 5
    `-- EngineError              HAL-E6xx   the engine failed or died                    exit 6

Message = what failed, the values, what to do next. Codes never change their meaning.
`hal.error_codes` says of each code what it means, which numbers it shows and what helps.
"""

from __future__ import annotations

TOO_LATE = "HAL-E420"
PINS_FULL = "HAL-E421"
ENGINE_DIED = "HAL-E601"
ENGINE_SILENT = "HAL-E602"
ENGINE_HUNG = "HAL-E603"
RANK_LOST = "HAL-E604"
NOT_FINITE = "HAL-E610"


class HalError(Exception):
    """Base of all errors that `hal` raises on purpose."""

    code = "HAL-E000"
    exit_code = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ConfigError(HalError):
    """A setting is wrong, unknown, or contradicts another."""

    code = "HAL-E100"
    exit_code = 2


class UnsupportedError(ConfigError):
    """A known setting or model that this version does not honour; never swallowed."""

    code = "HAL-E110"


class DeviceUnavailable(ConfigError):
    """The requested device cannot be used; carries the probe's reason."""

    code = "HAL-E120"


class ModelError(HalError):
    """The model folder is missing, is not a model, or has an unknown architecture."""

    code = "HAL-E200"
    exit_code = 3


class WeightsError(ModelError):
    """A weight file or tensor is malformed, missing, unexpected, or has the wrong shape."""

    code = "HAL-E210"


class TokenizerError(ModelError):
    """The tokenizer or the chat template is missing or unusable."""

    code = "HAL-E220"


class MemoryPlanError(HalError):
    """The plan does not fit the device; the message computes the remedies."""

    code = "HAL-E300"
    exit_code = 4


class DeviceOutOfMemory(MemoryPlanError):
    """The device refused an allocation while running."""

    code = "HAL-E310"


class RequestError(HalError):
    """One request is invalid; `param` names the field as the user wrote it."""

    code = "HAL-E400"
    exit_code = 2

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.param = param


class ContextLengthError(RequestError):
    """Prompt or max_tokens do not fit the context or the KV pool."""

    code = "HAL-E410"


class GrammarError(RequestError):
    """A schema, regex or grammar of guided decoding is wrong, not supported, or too large."""

    code = "HAL-E430"


class SelectionError(HalError):
    """No kernel accepts a problem; lists every candidate with its reason, in `rows` one by one."""

    code = "HAL-E500"
    exit_code = 5

    def __init__(
        self, message: str, *, rows: tuple[str, ...] = (), code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.rows = rows


class EngineError(HalError):
    """The engine failed; requests in flight end with this.

    `code` is that of the cause where a known error, such as a full device, failed a step.
    """

    code = "HAL-E600"
    exit_code = 6
