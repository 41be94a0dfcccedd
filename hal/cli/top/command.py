"""`hal-serve top [URL]`: redraws a screen on a terminal, prints it once anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TextIO

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.cli.bench.load.http_client import target_of
from hal.cli.top.scrape import NoAnswer, Scrape, ServerReader, Window
from hal.cli.top.view import screen
from hal.errors import ConfigError

WINDOW_S = 10.0
"""Rates and percentiles of a shorter time jump about."""
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"

_FLAGS = FlagGroup(
    "top",
    (
        Flag(
            name="url",
            help="of the server; may stand alone",
            metavar="URL",
            default="http://127.0.0.1:8000",
        ),
        Flag(name="api-key", help="where the server wants one", metavar="KEY"),
        Flag(
            name="interval", help="seconds between scrapes", metavar="S", convert=float, default=2.0
        ),
        Flag(
            name="count",
            help="screens until the end; default: no end on a terminal, else 1",
            metavar="N",
            convert=int,
        ),
    ),
)


def top_command(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Until Ctrl-C, which is no error. Raises ConfigError where the server cannot be asked."""
    spelled = ["--url", *words] if words and not words[0].startswith("-") else list(words)
    line = CommandLine(
        "hal-serve top", "Watch a running server. Ctrl-C ends.", [_FLAGS], takes_model=False
    )
    parsed = line.parse(spelled, environ)
    given = {flag.dest: parsed.get(flag.dest, flag.default) for flag in _FLAGS.flags}
    interval_s, count, key = given["interval"], given["count"], given["api_key"]
    assert isinstance(interval_s, float) and (count is None or isinstance(count, int))
    if not 0.1 <= interval_s <= 3600:
        raise ConfigError(f"--interval must be from 0.1 to 3600 seconds; got {interval_s:g}")
    if count is not None and count < 1:
        raise ConfigError(f"--count must be at least 1; got {count}")
    reader = ServerReader(target_of(str(given["url"])).url, None if key is None else str(key))
    first = reader.scrape()
    try:
        _watch(reader, first, sys.stdout, interval_s, count)
    except KeyboardInterrupt:
        pass
    return 0


def _watch(
    reader: ServerReader, first: Scrape, out: TextIO, interval_s: float, count: int | None
) -> None:
    is_terminal = out.isatty()
    scrapes = deque([first], maxlen=2 + int(WINDOW_S / interval_s))
    plan: dict[str, object] = {}
    num_left = count if count is not None or is_terminal else 1
    out.write(_ENTER if is_terminal else "")
    try:
        while num_left is None or num_left > 0:
            out.flush()
            time.sleep(interval_s)
            plan = plan or reader.plan()
            try:
                scrapes.append(reader.scrape())
            except NoAnswer as error:
                if not is_terminal:
                    raise
                out.write(f"{_HOME}{error.message}{_CLEAR_LINE}")
                continue
            lines = screen(_window(scrapes), plan, reader.url)
            out.write(_drawn(lines) if is_terminal else "\n".join(lines) + "\n")
            num_left = None if num_left is None else num_left - 1
    finally:
        out.write(_LEAVE if is_terminal else "")
        out.flush()


def _window(scrapes: deque[Scrape]) -> Window:
    """Over WINDOW_S, or as much as there is of it."""
    now = scrapes[-1]
    old = [scrape for scrape in scrapes if now.at_s - scrape.at_s <= WINDOW_S + 0.5]
    return Window(old[0] if len(old) > 1 else scrapes[-2], now)


def _drawn(lines: Sequence[str]) -> str:
    """No longer than the terminal is wide or high, or it would scroll."""
    size = shutil.get_terminal_size()
    shown = [line[: size.columns - 1] + _CLEAR_LINE for line in lines[: size.lines - 1]]
    return _HOME + "\r\n".join(shown) + _CLEAR_BELOW
