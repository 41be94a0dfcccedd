"""`hal-bench serve URL`: from flags to loads, and from what was measured to tables and files."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from hal.cli.bench.load.arrivals import offsets
from hal.cli.bench.load.figures import figures
from hal.cli.bench.load.http_client import HttpClient
from hal.cli.bench.load.options import (
    CLOSED_CONCURRENCY,
    OPEN_CONCURRENCY,
    Options,
    parse_options,
)
from hal.cli.bench.load.page import page
from hal.cli.bench.load.probe import Served, served_model, text_size
from hal.cli.bench.load.report import Report, table, write_file
from hal.cli.bench.load.runner import Load, Point, Runner
from hal.cli.bench.load.stream import Api, Style
from hal.cli.bench.load.workload import (
    TextSize,
    Wanted,
    Workload,
    fitted,
    from_trace,
    prompt_of,
    synthetic,
)
from hal.cli.bench.trace_file import Lines, read_lines
from hal.engine.progress import StreamProgress, Unit
from hal.errors import ConfigError

EXIT_SOME_FAILED = 1
EXIT_INTERRUPTED = 130
_DEFAULT_REQUESTS = 200
_SHOWN_MODELS = 5


def bench_serve(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """The command; 1 where a request failed. Raises ConfigError for what cannot start."""
    options = parse_options(arguments, environ)
    lines = None if options.trace_file is None else read_lines(options.trace_file)
    session = asyncio.run(_Session.run(options, lines))
    report = session.report()
    if options.json_file == "-":
        print(report.as_json())
    else:
        print(table(report))
    if options.json_file not in (None, "-"):
        write_file(options.json_file, report.as_json() + "\n")
    if options.html_file is not None:
        write_file(options.html_file, page(report, session.points))
    if session.is_stopped:
        return EXIT_INTERRUPTED
    num_failed = sum(point.num_failed for point in report.points)
    if num_failed:
        print(f"hal-bench: {num_failed} requests failed; see above why", file=sys.stderr)
    return EXIT_SOME_FAILED if num_failed else 0


@dataclass(slots=True)
class _Session:
    """One call of the command, while and after it runs."""

    options: Options
    started_at: str
    served: Served
    size: TextSize | None
    points: list[Point]
    notes: list[str]
    is_stopped: bool = False

    @classmethod
    async def run(cls, options: Options, lines: Lines | None) -> _Session:
        headers = {"user-agent": "hal-bench"}
        if options.api_key is not None:
            headers["authorization"] = f"Bearer {options.api_key}"
        client = HttpClient(options.target, headers)
        try:
            served = await served_model(client, options.model)
            style = Style(
                api=options.api,
                model=served.model,
                exact_length=options.exact_length,
                temperature=options.temperature,
            )
            size = await text_size(client, style, served.max_model_len, options.timeout_s)
            started_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            session = cls(options, started_at, served, size, [], [])
            session._note_server()
            await session._sweep(client, style, lines)
        finally:
            await client.close()
        return session

    def report(self) -> Report:
        options = self.options
        settings = asdict(options) | {"target": options.target.url}
        del settings["api_key"]
        return Report(
            url=options.target.url,
            model=self.served.model,
            started_at=self.started_at,
            settings={name: _plain(value) for name, value in settings.items()},
            goodput=options.goodput,
            notes=self.notes,
            points=[figures(point, options.goodput) for point in self.points],
        )

    async def _sweep(self, client: HttpClient, style: Style, lines: Lines | None) -> None:
        loop = asyncio.get_running_loop()
        progress = StreamProgress(sys.stderr, "", Unit.REQUESTS)
        runner = Runner(client, style, lambda record: progress.advance(1))
        loop.add_signal_handler(signal.SIGINT, self._interrupted, runner)
        for index, (concurrency, rate) in enumerate(_loads(self.options)):
            wanted = self._wanted(lines, index)
            load = self._load(wanted, concurrency, rate)
            bodies = [
                style.body(prompt_of(one, self.size or TextSize()), one.output_tokens)
                for one in wanted
            ]
            progress = StreamProgress(sys.stderr, load.name, Unit.REQUESTS)
            progress.start(len(bodies))
            try:
                self.points.append(await runner.run(load, bodies))
            finally:
                progress.finish()
            if runner.is_stopped:
                break
        self.is_stopped = runner.is_stopped

    def _interrupted(self, runner: Runner) -> None:
        runner.stop()
        # A second one ends without a report.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    def _wanted(self, lines: Lines | None, index: int) -> list[Wanted]:
        """Prompts of their own for each load, or a cache would have those of the load before."""
        options = self.options
        if lines is not None:
            found = from_trace(lines, options.lengths.output)[: options.num_requests]
            if options.api is Api.CHAT and any(one.token_ids for one in found):
                raise ConfigError(
                    "prompt_token_ids need --api completions; a chat takes texts only"
                )
        else:
            count = options.num_requests or _DEFAULT_REQUESTS
            found = synthetic(options.workload, options.lengths, count, f"{options.seed} {index}")
        limit = self.served.max_model_len
        if limit is None:
            return found
        fitting = [fitted(one, limit) for one in found]
        num_cut = sum(new is not old for new, old in zip(fitting, found, strict=True))
        if num_cut and options.workload in (Workload.FIXED, Workload.PREFIX):
            lengths = options.lengths
            raise ConfigError(
                f"--input-tokens {lengths.input} and --output-tokens {lengths.output} do not fit "
                f"the context of {limit} tokens; lower them"
            )
        if num_cut:
            self.notes.append(
                f"{num_cut} of {len(found)} requests were shortened to the context of {limit}"
            )
        return fitting

    def _load(self, wanted: Sequence[Wanted], concurrency: int | None, rate: float | None) -> Load:
        options = self.options
        times = [one.at_s for one in wanted if one.at_s is not None]
        due: list[float] | None = None
        if rate is not None:
            due = offsets(options.arrivals, rate, len(wanted), options.burst_size, options.seed)
            name = f"{options.arrivals} {rate:g}/s"
        elif wanted and len(times) == len(wanted):
            due = [at_s / options.speed for at_s in times]
            name = f"trace x{options.speed:g}"
        else:
            concurrency = concurrency or CLOSED_CONCURRENCY
            name = f"concurrency {concurrency}"
        return Load(
            name=name,
            concurrency=concurrency or OPEN_CONCURRENCY,
            offsets=due,
            timeout_s=options.timeout_s,
            duration_s=options.duration_s,
        )

    def _note_server(self) -> None:
        if self.served.others:
            names = ", ".join(self.served.others[:_SHOWN_MODELS])
            self.notes.append(f"the server has other models as well (--model): {names}")
        if self.size is None:
            self.notes.append(
                "the server counts no tokens of prompts: one word was taken for one token"
            )


def _loads(options: Options) -> list[tuple[int | None, float | None]]:
    """Concurrency and rate of each point; one of the two is swept over."""
    concurrencies = options.concurrencies or (None,)
    if options.rates:
        return [(concurrencies[0], rate) for rate in options.rates]
    return [(concurrency, None) for concurrency in concurrencies]


def _plain(value: object) -> object:
    """As JSON has it, for the settings."""
    return list(value) if isinstance(value, tuple) else value
