"""hal-serve: an OpenAI-compatible server for one model."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hal.cli.arguments import (
    ENGINE_FLAGS,
    CommandLine,
    Flag,
    FlagGroup,
    engine_config,
    report_error,
)
from hal.cli.keys import keys_command
from hal.cli.listener import bind, is_loopback
from hal.config import EngineConfig
from hal.env import LOG_LEVELS, environment, wants_traceback
from hal.errors import ConfigError, HalError
from hal.server.json_log import LogFormat, formatter
from hal.server.keys import KeyRing, load_keys, single_key
from hal.server.metric_names import MetricsCompat
from hal.server.queue_limits import QueueLimits

if TYPE_CHECKING:
    from hal.server.hand_over import TakeOver
    from hal.server.supervisor import EngineProcess
    from hal.server.tracing import RequestSpans

Choice = TypeVar("Choice", bound=StrEnum)

EXIT_INTERRUPTED = 130
FAKE_PREFIX = "fake:"

SERVER_FLAGS = FlagGroup(
    "server",
    (
        Flag(name="host", help="address to listen on", metavar="ADDRESS", default="127.0.0.1"),
        Flag(name="port", help="port; 0 takes a free one", metavar="N", convert=int, default=8000),
        Flag(
            name="take-over",
            help="load, then take the socket of the hal-serve at this host and port, which ends",
            convert=None,
        ),
        Flag(name="api-key", help="clients must send it; prefer the environment", metavar="KEY"),
        Flag(
            name="api-keys",
            help="TOML file of keys with scopes and limits; hal-serve keys add writes it",
            metavar="FILE",
        ),
        Flag(
            name="key-usage",
            help="file in which the use of limited keys outlives restarts, or none; default: "
            "beside --api-keys",
            metavar="FILE",
        ),
        Flag(name="served-model-name", help="name in the API; default MODEL", metavar="NAME"),
        Flag(
            name="shutdown-timeout",
            help="seconds that running requests get after SIGTERM or Ctrl-C",
            metavar="S",
            convert=float,
            default=30.0,
        ),
        Flag(
            name="heartbeat-timeout",
            help="seconds without a sign of the engine process until it counts as dead",
            metavar="S",
            convert=float,
            default=10.0,
        ),
        Flag(
            name="step-timeout",
            help="seconds one engine step may take until it counts as hung",
            metavar="S",
            convert=float,
            default=300.0,
        ),
        Flag(
            name="max-queue-size",
            help="requests that may wait for their first token; more get 503",
            metavar="N",
            convert=int,
            default=QueueLimits().max_requests,
            variable="MAX_QUEUE_SIZE",
        ),
        Flag(
            name="max-queued-tokens",
            help="prompt tokens that may wait; more get 503",
            metavar="N",
            convert=int,
            default=QueueLimits().max_tokens,
        ),
        Flag(
            name="request-timeout",
            help="seconds a request may wait that has no timeout_s; more get 504",
            metavar="S",
            convert=float,
            variable="REQUEST_TIMEOUT",
        ),
        Flag(
            name="priority-levels",
            help="requests may have a priority of 0, the most urgent, to N-1; default: any",
            metavar="N",
            convert=int,
            variable="PRIORITY_LEVELS",
        ),
        Flag(name="log-format", help="text or json", metavar="FORMAT", default="text"),
        Flag(
            name="metrics-compat",
            help="none, or vllm: /metrics has every sample under vLLM's name as well",
            metavar="NAME",
            default="none",
        ),
        Flag(
            name="otlp-endpoint",
            help="send a span of each request there, as http://127.0.0.1:4318/v1/traces",
            metavar="URL",
        ),
        Flag(
            name="tool-call-parser",
            help="how the model writes tool calls; default: as its chat template does",
            metavar="FAMILY",
        ),
        Flag(
            name="reasoning-parser",
            help="how the model marks its reasoning, or none; default: as its chat template does",
            metavar="FAMILY",
        ),
        Flag(
            name="no-page",
            help="no page for browsers at /",
            convert=None,
            sets=False,
            default=True,
            field="page",
        ),
        Flag(name="log-level", help=", ".join(LOG_LEVELS), metavar="LEVEL", default="info"),
        Flag(name="engine", help="fake:SCRIPT runs a scripted engine in tests", is_hidden=True),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What hal-serve was asked to do."""

    config: EngineConfig
    host: str
    port: int
    is_take_over: bool
    keys: KeyRing | None
    key_usage: Path | None
    queue: QueueLimits
    request_timeout_s: float | None
    priority_levels: int | None
    has_page: bool
    served_name: str
    shutdown_timeout_s: float
    heartbeat_timeout_s: float
    step_timeout_s: float
    log_level: str
    log_format: LogFormat
    metrics_compat: MetricsCompat
    otlp_endpoint: str | None
    tool_parser: str | None
    reasoning_parser: str | None
    fake_script: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code, the last line on stderr is the cause."""
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        if words[:1] == ["keys"]:
            return keys_command(words[1:])
        if words[:1] == ["top"]:
            from hal.cli.top.command import top_command

            return top_command(words[1:], environment())
        return _serve(parse_options(words, environment()))
    except HalError as error:
        if wants_traceback():
            logging.exception("hal-serve failed")
        return report_error("hal-serve", error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def parse_options(argv: Sequence[str], environ: Mapping[str, str]) -> ServeOptions:
    """Raises ConfigError or UnsupportedError."""
    command = CommandLine(
        "hal-serve",
        "Serve a model over the OpenAI API. Ctrl-C drains and stops; a second Ctrl-C stops now.\n\n"
        "Instead of MODEL: keys add FILE NAME makes an API key, top [URL] watches a running "
        "server. A folder of such a name is ./keys or ./top.",
        (ENGINE_FLAGS, SERVER_FLAGS),
    )
    values = command.parse(argv, environ)
    for line in command.warnings(environ):
        print(f"hal-serve: {line}", file=sys.stderr)
    config = engine_config({k: v for k, v in values.items() if k != "served_model_name"})
    given = {flag.dest: values.get(flag.dest, flag.default) for flag in SERVER_FLAGS.flags}
    keys = _keys(_text(given["api_key"]), _text(given["api_keys"]))
    options = ServeOptions(
        config=config,
        host=str(given["host"]),
        port=_number(given["port"]),
        is_take_over=bool(given["take_over"]),
        keys=keys,
        key_usage=_key_usage(_text(given["key_usage"]), _text(given["api_keys"]), keys),
        queue=_queue_limits(given),
        request_timeout_s=(
            None
            if given["request_timeout"] is None
            else _seconds("request-timeout", given, least=0.001)
        ),
        priority_levels=_priority_levels(given["priority_levels"]),
        has_page=bool(given["page"]),
        served_name=_text(given["served_model_name"]) or config.model,
        shutdown_timeout_s=_seconds("shutdown-timeout", given, least=0.0),
        heartbeat_timeout_s=_seconds("heartbeat-timeout", given, least=1.0),
        step_timeout_s=_seconds("step-timeout", given, least=1.0),
        log_level=str(given["log_level"]),
        log_format=_choice(LogFormat, "log-format", given),
        metrics_compat=_choice(MetricsCompat, "metrics-compat", given),
        otlp_endpoint=_text(given["otlp_endpoint"]),
        tool_parser=_text(given["tool_call_parser"]),
        reasoning_parser=_text(given["reasoning_parser"]),
        fake_script=_fake_script(_text(given["engine"])),
    )
    _check(options)
    return options


def _check(options: ServeOptions) -> None:
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port {options.port} is not a port; choose 1 to 65535, or 0 for any")
    if options.is_take_over and options.port == 0:
        raise ConfigError("--take-over with --port 0: name the port of the server to take it from")
    if options.log_level not in LOG_LEVELS:
        raise ConfigError(
            f"--log-level {options.log_level!r} is not one of {', '.join(LOG_LEVELS)}"
        )
    if options.keys is None and not is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host} is reachable from other machines; set HAL_API_KEY (or "
            "--api-key, --api-keys), or listen on 127.0.0.1"
        )


def _keys(single: str | None, file: str | None) -> KeyRing | None:
    """None lets everybody in."""
    if single is not None and not single.strip():
        raise ConfigError("--api-key is empty; give a key or leave it out")
    keys = [] if single is None else [single_key(single)]
    if file is not None:
        keys += load_keys(Path(file))
    return KeyRing(keys) if keys else None


def _key_usage(given: str | None, keys_file: str | None, keys: KeyRing | None) -> Path | None:
    """None where nothing is counted, or nothing shall be kept."""
    if keys is None or not any(key.limits.is_counted for key in keys.keys) or given == "none":
        return None
    if given is not None:
        return Path(given)
    assert keys_file is not None, "only keys of a file have limits"
    return Path(f"{keys_file}.usage")


def _queue_limits(given: Mapping[str, object]) -> QueueLimits:
    size, tokens = _number(given["max_queue_size"]), _number(given["max_queued_tokens"])
    if size < 1 or tokens < 1:
        raise ConfigError(
            f"--max-queue-size {size} and --max-queued-tokens {tokens}: both must be at least 1"
        )
    return QueueLimits(max_requests=size, max_tokens=tokens)


def _priority_levels(value: object) -> int | None:
    if value is not None and _number(value) < 1:
        raise ConfigError(f"--priority-levels must be at least 1; got {value}")
    return None if value is None else _number(value)


def _serve(options: ServeOptions) -> int:
    spans = _spans(options)
    with contextlib.ExitStack() as open_things:
        door = _door(options)
        open_things.callback(door.close)
        folder = _model_folder(options)
        process = _engine_process(options)
        open_things.callback(process.kill)
        # The child starts first: it needs seconds for its imports, this process a second.
        process.spawn()
        return _run(options, folder, process, door, spans)


def _door(options: ServeOptions) -> socket.socket | TakeOver:
    """A socket that listens, or the server that has it; raises ConfigError."""
    if not options.is_take_over:
        return bind(options.host, options.port)
    from hal.server.hand_over import TakeOver

    return TakeOver(options.host, options.port)


def _run(
    options: ServeOptions,
    folder: Path,
    process: EngineProcess,
    door: socket.socket | TakeOver,
    spans: RequestSpans | None,
) -> int:
    import asyncio

    from hal.cli.banner import print_banner
    from hal.server.async_engine import AsyncEngine
    from hal.server.front import Front
    from hal.server.key_usage import UsageFile
    from hal.server.messages import Start
    from hal.server.run import RunOptions, serve
    from hal.server.text import TextModel

    _set_up_logging(options.log_level, options.log_format)
    port = door.getsockname()[1] if isinstance(door, socket.socket) else options.port
    url = f"http://{_url_host(options.host)}:{port}"
    when = (
        f"{url}/ready turns 200 when it is done"
        if isinstance(door, socket.socket)
        else f"{url}/ready is answered by pid {door.pid} until then"
    )
    print(f"hal-serve: loading {options.config.model}; {when}", file=sys.stderr, flush=True)

    async def run() -> int:
        front = Front(
            AsyncEngine(process, options.queue),
            options.served_name,
            metrics_compat=options.metrics_compat,
            spans=spans,
            keys=options.keys,
            request_timeout_s=options.request_timeout_s,
            priority_levels=options.priority_levels,
            has_page=options.has_page,
        )
        run_options = RunOptions(
            start=Start(replace(options.config, model=str(folder)), options.fake_script),
            load_text=lambda: TextModel.load(
                folder,
                options.config.chat_template,
                options.tool_parser,
                options.reasoning_parser,
            ),
            on_ready=lambda front: print_banner(front, url, has_key=options.keys is not None),
            host=options.host,
            shutdown_timeout_s=options.shutdown_timeout_s,
            open_usage=None if options.key_usage is None else partial(UsageFile, options.key_usage),
        )
        return await serve(front, door, run_options)

    return asyncio.run(run())


def _engine_process(options: ServeOptions) -> EngineProcess:
    from hal.server.supervisor import EngineProcess, WatchdogLimits

    limits = WatchdogLimits(
        heartbeat_timeout_s=options.heartbeat_timeout_s, step_timeout_s=options.step_timeout_s
    )
    return EngineProcess([sys.executable, "-P", "-m", "hal.cli.engine_process"], limits)


def _model_folder(options: ServeOptions) -> Path:
    """A scripted engine reads no weights, so its folder needs none."""
    if options.fake_script is not None:
        return Path(options.config.model)
    from hal.engine.checkpoint import resolve_model

    return resolve_model(options.config.model, offline=options.config.offline)


def _set_up_logging(level: str, log_format: LogFormat) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    logging.getLogger("hal").addHandler(handler)
    logging.getLogger("hal").setLevel(level.upper())
    for other in ("uvicorn.error", "opentelemetry"):
        logging.getLogger(other).addHandler(handler)
        logging.getLogger(other).setLevel(logging.WARNING)


def _fake_script(engine: str | None) -> str | None:
    if engine is None:
        return None
    if not engine.startswith(FAKE_PREFIX):
        raise ConfigError(f"--engine {engine!r} is unknown; only fake:SCRIPT exists")
    return engine.removeprefix(FAKE_PREFIX)


def _seconds(flag: str, given: Mapping[str, object], *, least: float) -> float:
    value = given[flag.replace("-", "_")]
    assert isinstance(value, float)
    if not least <= value < float("inf"):
        raise ConfigError(f"--{flag} must be at least {least:g} seconds; got {value:g}")
    return value


def _choice(kind: type[Choice], flag: str, given: Mapping[str, object]) -> Choice:
    value = given[flag.replace("-", "_")]
    try:
        return kind(str(value))
    except ValueError:
        raise ConfigError(f"--{flag} {value!r} is not one of {', '.join(kind)}") from None


def _spans(options: ServeOptions) -> RequestSpans | None:
    if options.otlp_endpoint is None:
        return None
    from hal.server.tracing import otlp_spans

    if not options.otlp_endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"--otlp-endpoint {options.otlp_endpoint!r} is not a URL as http://127.0.0.1:4318/v1/traces"
        )
    return otlp_spans(options.otlp_endpoint, options.served_name)


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _text(value: object) -> str | None:
    assert value is None or isinstance(value, str)
    return value


def _url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
