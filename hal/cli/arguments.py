"""Flags of all commands: a table, read from the command line, then HAL_<FLAG>, then --config.

Parsing imports neither torch nor a server, so `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from hal.aliases import ALIASES, BY_NAME, apply_aliases, nearest
from hal.cache_policy import POLICY_NAMES
from hal.cli.settings_file import Setting, read_settings
from hal.config import COLLECTIVES, EngineConfig
from hal.env import flag_value, parse_switch, unknown_names, variable_of
from hal.errors import ConfigError, HalError, SelectionError
from hal.weights import FORMAT_NAMES

Convert = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag. `convert` is None for a switch; `sets` is what a switch means.

    variable: a second name in the environment, beside HAL_<FLAG>
    """

    name: str
    help: str = ""
    metavar: str = ""
    convert: Convert | None = str
    sets: bool = True
    repeats: bool = False
    default: object = None
    is_hidden: bool = False
    field: str = ""
    variable: str = ""

    @property
    def dest(self) -> str:
        """Where the value goes: the flag's own name, unless it sets a field of another name."""
        return self.field or self.name.replace("-", "_")


@dataclass(frozen=True, slots=True)
class FlagGroup:
    """Flags under one heading of --help."""

    title: str
    flags: tuple[Flag, ...]


def _default(name: str) -> object:
    return next(f.default for f in fields(EngineConfig) if f.name == name)


def _setting(name: str, help: str, metavar: str, convert: Convert = str) -> Flag:
    field = name.replace("-", "_")
    return Flag(name=name, help=help, metavar=metavar, convert=convert, default=_default(field))


ENGINE_FLAGS = FlagGroup(
    "model and engine",
    (
        Flag(
            name="config",
            help="TOML file of flags, as max-num-seqs = 64; flags and environment win over it",
            metavar="FILE",
            convert=Path,
        ),
        _setting(
            "device", "auto, cpu, one that hal-info lists, or null:PROFILE to pose as it", "NAME"
        ),
        _setting("dtype", "auto, float32, bfloat16 or float16", "TYPE"),
        _setting("quantization", f"store weights as one of {FORMAT_NAMES}", "FORMAT"),
        _setting(
            "memory", "share of the device's memory, a size (24GiB), or reserve:8GiB", "AMOUNT"
        ),
        _setting("max-model-len", "longest prompt + answer in tokens", "N", int),
        _setting("max-num-seqs", "most sequences that run at once", "N", int),
        _setting("max-num-batched-tokens", "most tokens of one step", "N", int),
        _setting("block-size", "tokens per KV block", "N", int),
        Flag(name="enforce-eager", help="no graph capture", convert=None),
        Flag(
            name="no-prefix-caching",
            help="never share the KV blocks of equal prompt starts",
            convert=None,
            sets=False,
            field="prefix_caching",
        ),
        _setting(
            "cache-policy", f"which cached prefix goes first: {' '.join(POLICY_NAMES)}", "NAME"
        ),
        _setting("cache-ttl", "seconds that an unused prefix is kept", "SECONDS", float),
        _setting(
            "inter-token-target-ms",
            "prefill beside decodes only what keeps a step within this",
            "MS",
            float,
        ),
        _setting("max-pinned-share", "the most of the KV blocks that pins may keep", "0..1", float),
        _setting("swap-space", "host memory for KV blocks that leave the device; 8 = 8GiB", "SIZE"),
        Flag(
            name="static-batching",
            help="start no request before all that run are done: a baseline to compare with",
            convert=None,
        ),
        _setting("trace", "write one JSON line for each step", "FILE", Path),
        _setting("seed", "base of the random seeds", "N", int),
        _setting("chat-template", "Jinja file that replaces the model's template", "FILE", Path),
        Flag(name="offline", help="never ask the hub, use its cache only", convert=None),
        Flag(
            name="kernel",
            help="use kernel NAME for op OP; may be repeated",
            metavar="OP=NAME",
            repeats=True,
        ),
        Flag(name="strict", help="refuse slow fallback kernels on an accelerator", convert=None),
        Flag(
            name="deterministic",
            help="only kernels whose sums do not depend on the batch",
            convert=None,
        ),
        _setting("threads", "CPU threads", "N", int),
        _setting(
            "cpu-affinity", "auto, none, or the CPUs to keep threads on, as 0-7,16-23", "CPUS"
        ),
        Flag(
            name="no-cache",
            help="neither read nor keep packed weights on disk",
            convert=None,
            sets=False,
            field="cache",
        ),
        _setting(
            "tensor-parallel-size", "ranks that share the model; on CPUs each a process", "N", int
        ),
        _setting("collective", f"how ranks talk: {', '.join(COLLECTIVES)}", "NAME"),
        _setting("kv-cache-dtype", "auto: as the model; int8 or fp8 codes: half of that", "TYPE"),
    ),
)

MODEL = Flag(
    name="model",
    help="a folder, a hub id, or the embedded hal-tiny",
    metavar="MODEL",
    default=_default("model"),
    is_hidden=True,
)


def _alias_flags() -> Iterator[Flag]:
    for alias in ALIASES:
        flag = alias.name.replace("_", "-")
        if alias.flag_type is bool:
            yield Flag(name=flag, convert=None, is_hidden=True)
            yield Flag(
                name=f"no-{flag}", convert=None, sets=False, field=alias.name, is_hidden=True
            )
        else:
            yield Flag(name=flag, convert=alias.flag_type, is_hidden=True)


ALIAS_FLAGS = FlagGroup("vLLM names", tuple(_alias_flags()))


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class CommandLine:
    """One command's flags; `parse()` gives only what the user set, by the field's name.

    takes_model: whether there is MODEL, and with it vLLM's names for engine settings.
    """

    def __init__(
        self, prog: str, description: str, groups: Sequence[FlagGroup], *, takes_model: bool = True
    ) -> None:
        own = tuple(flag for group in groups for flag in group.flags)
        names = {flag.name for flag in own}
        hidden = (MODEL, *(f for f in ALIAS_FLAGS.flags if f.name not in names))
        self._flags = (*own, *hidden) if takes_model else own
        self._takes_model = takes_model
        self._parser = _Parser(
            prog=prog,
            description=_paragraphs(description),
            epilog=_epilog(takes_model),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        if takes_model:
            self._parser.add_argument(
                "model_positional", metavar="MODEL", nargs="?", help=_shown(MODEL)
            )
        for group in groups:
            section = self._parser.add_argument_group(group.title)
            for flag in group.flags:
                _add(section, flag)
        for flag in self._flags[len(own) :]:
            _add(self._parser, flag)
        last = self._parser.add_argument_group("about")
        last.add_argument("-h", "--help", action="help", help="show this and exit")
        last.add_argument("--version", action="store_true", help="print the version and exit")

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, object]:
        """Raises ConfigError naming the flag, with the nearest known one for a misspelt flag."""
        namespace, unknown = self._parser.parse_known_args(argv)
        if unknown:
            raise ConfigError(self._unknown(unknown[0]))
        given = {k: v for k, v in vars(namespace).items() if v is not None}
        if given.pop("version"):
            _print_version(self._parser.prog)
        given = _merge_model(given)
        given = {**self._from_environment(environ, given), **given}
        config = given.get("config")
        return {**self._from_file(config), **given} if isinstance(config, Path) else given

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """Lines about HAL_ names in the environment that no flag has."""
        known = [flag.name for flag in self._flags] + list(SHARED_NAMES)
        lines = []
        for name in unknown_names(known, environ):
            guess = nearest(name, [variable_of(flag) for flag in known])
            hint = f"; did you mean {guess}?" if guess else ""
            lines.append(f"{name} in the environment is not a setting and is ignored{hint}")
        return lines

    def _from_environment(
        self, environ: Mapping[str, str], given: Mapping[str, object]
    ) -> dict[str, object]:
        values: dict[str, object] = {}
        for flag in self._flags:
            name = variable_of(flag.name)
            text = flag_value(flag.name, environ)
            if text is None and flag.variable:
                name, text = flag.variable, environ.get(flag.variable)
            if text is None or flag.dest in given:
                continue
            try:
                values[flag.dest] = _convert(flag, text)
            except ValueError as error:
                raise ConfigError(f"{name}={text!r}: {error}") from error
        return values

    def _from_file(self, path: Path) -> dict[str, object]:
        known = {flag.name: flag for flag in self._flags if flag.name != "config"}
        values: dict[str, object] = {}
        for name, setting in read_settings(path):
            flag = known.get(name)
            if flag is None:
                guess = nearest(name, known)
                hint = f"; did you mean {guess}?" if guess else ""
                raise ConfigError(f"--config {path}: {name!r} is not a flag{hint}")
            try:
                values[flag.dest] = _from_setting(flag, setting)
            except ValueError as error:
                raise ConfigError(f"--config {path}: {name} = {setting!r}: {error}") from error
        return values

    def _unknown(self, argument: str) -> str:
        flag = argument.split("=", 1)[0]
        if not flag.startswith("-"):
            taken = "only one MODEL is taken" if self._takes_model else "no MODEL is taken"
            return f"unexpected argument {argument!r}; {taken}"
        guess = nearest(flag, [f"--{f.name}" for f in self._flags])
        hint = f"did you mean {guess}?" if guess else f"see {self._parser.prog} --help"
        return f"unknown flag {flag}; {hint}"


# Flags of other commands: one environment serves all of them.
SHARED_NAMES = ("host", "port", "api-key", "api-keys", "served-model-name", "shutdown-timeout")

_ENVIRONMENT = (
    "Every flag can be set in the environment as HAL_<FLAG>, e.g. HAL_MAX_MODEL_LEN=4096."
)
_ALIASES = (
    " vLLM's names are understood too: "
    + ", ".join(f"--{a.name.replace('_', '-')}" for a in ALIASES if a.becomes or a.reason)
    + "; a value that is not honoured is refused with the reason."
)


def _paragraphs(text: str) -> str:
    """Each filled to the width of a terminal, unless it has lines of its own."""
    parts = text.split("\n\n")
    return "\n\n".join(p if "\n" in p else textwrap.fill(p, width=80) for p in parts)


def _epilog(takes_model: bool) -> str:
    text = _ENVIRONMENT + _ALIASES if takes_model else _ENVIRONMENT
    return textwrap.fill(text, width=80, break_on_hyphens=False)


def engine_config(values: Mapping[str, object]) -> EngineConfig:
    """The engine's share of parsed values; refuses what is not honoured."""
    known = EngineConfig.field_names() | BY_NAME.keys()
    settings = apply_aliases({k: v for k, v in values.items() if k in known})
    if "kernel" in settings:
        settings["kernel"] = tuple(_strings(settings["kernel"]))
    return EngineConfig(**settings)  # type: ignore[arg-type]  # converted by the flag table


def report_error(prog: str, error: HalError) -> int:
    """Print the cause as the last line of stderr, rows of details above; returns its exit code."""
    if isinstance(error, SelectionError):
        for row in error.rows:
            print(f"  {row}", file=sys.stderr)
    print(f"{prog}: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _strings(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]


def _convert(flag: Flag, text: str) -> object:
    if flag.convert is None:
        return flag.sets == parse_switch(text)
    if flag.repeats:
        return [flag.convert(part) for part in text.split(",")]
    return flag.convert(text)


def _from_setting(flag: Flag, setting: Setting) -> object:
    if isinstance(setting, list):
        if not flag.repeats or flag.convert is None:
            raise ValueError("one value is wanted")
        return [flag.convert(item) for item in setting]
    if isinstance(setting, bool) != (flag.convert is None):
        raise ValueError("true or false is wanted" if flag.convert is None else "not a switch")
    return flag.sets == setting if isinstance(setting, bool) else _convert(flag, setting)


def _add(section: argparse._ActionsContainer, flag: Flag) -> None:
    shown = argparse.SUPPRESS if flag.is_hidden else _shown(flag)
    name = f"--{flag.name}"
    if flag.convert is None:
        section.add_argument(
            name, dest=flag.dest, action="store_const", const=flag.sets, help=shown
        )
        return
    section.add_argument(
        name,
        dest=flag.dest,
        type=flag.convert,
        metavar=flag.metavar or None,
        action="append" if flag.repeats else "store",
        help=shown,
    )


def _shown(flag: Flag) -> str:
    default = "" if flag.default is None else f"; default {flag.default}"
    names = " or ".join(filter(None, (variable_of(flag.name), flag.variable)))
    return f"{flag.help}{default}  [{names}]".replace("%", "%%")


def _merge_model(values: dict[str, object]) -> dict[str, object]:
    """MODEL and --model are the same setting."""
    positional = values.pop("model_positional", None)
    if positional is None:
        return values
    flagged = values.get("model")
    if flagged is not None and flagged != positional:
        raise ConfigError(f"MODEL is {positional!r} and --model is {flagged!r}; give one of them")
    return {**values, "model": positional}


def _print_version(prog: str) -> NoReturn:
    import hal

    print(f"{prog} {hal.__version__}")
    raise SystemExit(0)
