"""hal-run: complete prompts from the command line, a JSON Lines file, or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hal.cli.arguments import (
    ENGINE_FLAGS,
    CommandLine,
    Flag,
    FlagGroup,
    engine_config,
    report_error,
)
from hal.cli.garbage import no_collections_while_loading
from hal.config import EngineConfig
from hal.env import environment, let_waiting_threads_sleep, wants_traceback
from hal.errors import ConfigError, HalError, RequestError
from hal.sampling_params import SamplingParams

if TYPE_CHECKING:
    from hal.llm import LLM, RequestOutput

EXIT_INTERRUPTED = 130
STDIO = "-"

RUN_FLAGS = FlagGroup(
    "prompts and answers",
    (
        Flag(name="prompt", help="complete this text and stream the answer", metavar="TEXT"),
        Flag(name="chat", help="send plain prompts through the chat template", convert=None),
        Flag(
            name="input",
            help="file of prompts, one a line: text, or JSON objects with prompt, "
            "prompt_token_ids or messages; - is standard input",
            metavar="FILE",
            default=STDIO,
        ),
        Flag(name="output", help="where JSON Lines go", metavar="FILE", default=STDIO),
    ),
)
SAMPLING_FLAGS = FlagGroup(
    "sampling; a JSON line's own fields win",
    (
        Flag(name="max-tokens", help="longest answer", metavar="N", convert=int),
        Flag(name="temperature", help="0 takes the most likely token", metavar="T", convert=float),
        Flag(name="top-p", help="smallest set with this mass", metavar="P", convert=float),
        Flag(name="top-k", help="only the K most likely", metavar="K", convert=int),
        Flag(name="n", help="answers per prompt", metavar="N", convert=int),
        Flag(name="stop", help="text that ends an answer; may be repeated", repeats=True),
    ),
)
_SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))
_PROMPT_FIELDS = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What hal-run was asked to do."""

    config: EngineConfig
    prompt: str | None
    is_chat: bool
    input: str
    output: str
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input: a prompt or a conversation, and its own sampling fields."""

    number: int
    content: Any
    is_chat: bool
    sampling: Mapping[str, Any]
    id: object


def parse_options(argv: Sequence[str], environ: Mapping[str, str]) -> RunOptions:
    """Raises ConfigError."""
    command_line = CommandLine("hal-run", __doc__ or "", (RUN_FLAGS, SAMPLING_FLAGS, ENGINE_FLAGS))
    values = command_line.parse(argv, environ)
    for warning in command_line.warnings(environ):
        print(f"hal-run: {warning}", file=sys.stderr)
    names = [flag.dest for flag in SAMPLING_FLAGS.flags]
    prompt = values.get("prompt")
    return RunOptions(
        config=engine_config(values),
        prompt=None if prompt is None else str(prompt),
        is_chat=bool(values.get("chat", False)),
        input=str(values.get("input", STDIO)),
        output=str(values.get("output", STDIO)),
        sampling={name: values[name] for name in names if name in values},
    )


def read_lines(stream: TextIO, is_chat: bool) -> Iterator[Line]:
    """Every non-blank line; raises RequestError naming the line that is wrong."""
    for number, text in enumerate(stream, start=1):
        text = text.rstrip("\n")
        if not text.strip():
            continue
        if text.lstrip().startswith("{"):
            yield _json_line(number, text, is_chat)
        else:
            yield Line(number, text, is_chat, {}, number)


def _json_line(number: int, text: str, is_chat: bool) -> Line:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"line {number} is not valid JSON: {error}") from error
    given = [name for name in _PROMPT_FIELDS if name in record]
    if len(given) != 1:
        raise RequestError(
            f"line {number} needs exactly one of {', '.join(_PROMPT_FIELDS)}; it has "
            f"{', '.join(given) or 'none of them'}"
        )
    unknown = record.keys() - _SAMPLING_FIELDS - {*_PROMPT_FIELDS, "id"}
    if unknown:
        raise RequestError(f"line {number} has unknown fields: {', '.join(sorted(unknown))}")
    return Line(
        number=number,
        content=record[given[0]],
        is_chat=given[0] == "messages" or (is_chat and given[0] == "prompt"),
        sampling=_sampling(number, record),
        id=record.get("id", number),
    )


def _sampling(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's sampling fields; JSON keys are text, token ids are not."""
    given = {name: value for name, value in record.items() if name in _SAMPLING_FIELDS}
    if "logit_bias" in given:
        try:
            given["logit_bias"] = {int(key): bias for key, bias in given["logit_bias"].items()}
        except (AttributeError, ValueError) as error:
            raise RequestError(f"line {number}: logit_bias maps token ids to numbers") from error
    return given


def _params(llm: LLM, options: RunOptions, line: Line) -> SamplingParams:
    try:
        chosen = {**options.sampling, **line.sampling}
        return replace(llm.get_default_sampling_params(), **chosen)
    except RequestError as error:
        raise RequestError(f"line {line.number}: {error.message}", param=error.param) from error


def _prompt(llm: LLM, line: Line) -> Any:
    if not line.is_chat:
        return line.content
    messages = line.content
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return llm.render(messages)


def _record(line: Line, result: RequestOutput) -> dict[str, object]:
    return {
        "id": line.id,
        "prompt": line.content,
        "outputs": [
            {
                "index": choice.index,
                "text": choice.text,
                "finish_reason": choice.finish_reason,
                "num_tokens": len(choice.token_ids),
            }
            for choice in result.outputs
        ],
        "num_prompt_tokens": len(result.prompt_token_ids),
    }


def run_batch(llm: LLM, options: RunOptions, lines: Sequence[Line], out: TextIO) -> None:
    """Complete every line and write one JSON record for each, in the order of the input."""
    prompts = [_prompt(llm, line) for line in lines]
    params = [_params(llm, options, line) for line in lines]
    for line, result in zip(lines, llm.generate(prompts, params), strict=True):
        out.write(json.dumps(_record(line, result), ensure_ascii=False) + "\n")
    out.flush()


def run_prompt(llm: LLM, options: RunOptions, text: str, out: TextIO) -> None:
    """Stream the answer to one prompt as plain text."""
    line = Line(1, text, options.is_chat, {}, 1)
    params = _params(llm, options, line)
    if params.n != 1:
        raise ConfigError("--prompt streams one answer; for --n put the prompt into a file")
    try:
        for delta in llm.stream(_prompt(llm, line), params):
            out.write(delta.text)
            out.flush()
    finally:  # an error message begins on a line of its own
        out.write("\n")
        out.flush()


def _open_input(name: str, stack: ExitStack) -> TextIO:
    if name == STDIO:
        return sys.stdin
    try:
        return stack.enter_context(Path(name).open(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--input {name}: {error.strerror}") from error


def _open_output(name: str, stack: ExitStack) -> TextIO:
    if name == STDIO:
        return sys.stdout
    try:
        return stack.enter_context(Path(name).open("w", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--output {name}: {error.strerror}") from error


def run(options: RunOptions) -> None:
    """Everything is read and checked before the model loads."""
    with ExitStack() as stack:
        lines: list[Line] = []
        if options.prompt is None:
            lines = list(read_lines(_open_input(options.input, stack), options.is_chat))
        out = _open_output(options.output, stack)
        let_waiting_threads_sleep()
        with no_collections_while_loading():
            from hal.llm import LLM

            opened = LLM.from_config(options.config)
        with opened as llm:
            device = options.config.device
            if device == "auto" or llm.posed is not None:
                print(f"hal-run: device {device}: {llm.device_reason}", file=sys.stderr)
            if options.prompt is not None:
                run_prompt(llm, options, options.prompt, out)
            else:
                run_batch(llm, options, lines, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code of the error tree, 130 after Ctrl-C."""
    try:
        run(parse_options(sys.argv[1:] if argv is None else argv, environment()))
    except HalError as error:
        if wants_traceback():
            raise
        return report_error("hal-run", error)
    except KeyboardInterrupt:
        print("hal-run: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `head` does.
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
