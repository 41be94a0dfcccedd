"""One screen of text from two scrapes: no escape codes, so that it reads the same in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hal.cli.top.scrape import Window

BAR_WIDTH = 40
_SHARES = (0.5, 0.9, 0.99)
_LATENCIES = (
    ("TTFT", "time_to_first_token_seconds"),
    ("inter-token", "inter_token_latency_seconds"),
    ("end to end", "e2e_request_latency_seconds"),
)
_STATES = (("used", "#"), ("pinned", "P"), ("cached", "+"), ("free", "."))


def screen(window: Window, plan: Mapping[str, object], url: str) -> list[str]:
    """Rates and percentiles are those of the window; gauges those of its end."""
    has_engine = "num_requests_running" in window.now.samples
    return [
        f"{_title(plan)}  {url}  last {window.now.at_s - window.before.at_s:.0f} s",
        "" if has_engine else f"the engine is not up: {url}/ready says in which state it is",
        *_throughput(window),
        "",
        *_latencies(window),
        "",
        *_queue(window, plan),
        *_blocks(window),
        *_cache(window),
        *_trouble(window),
    ]


def _title(plan: Mapping[str, object]) -> str:
    name = plan.get("served_model_name", "model unknown")
    device = plan.get("device")
    shown = device.get("name") if isinstance(device, Mapping) else device
    return f"{name} on {shown}" if shown else str(name)


def _throughput(window: Window) -> list[str]:
    return [
        f"tokens/s    {window.rate('generation_tokens_total'):10.1f} generated"
        f"{window.rate('prompt_tokens_total'):12.1f} prompt",
        f"requests/s  {window.rate('e2e_request_latency_seconds_count'):10.2f} finished "
        f"{window.rate('requests_rejected_total'):12.2f} refused",
    ]


def _latencies(window: Window) -> list[str]:
    lines = [f"{'latency ms':12}" + "".join(f"{f'p{share * 100:g}':>10}" for share in _SHARES)]
    for label, name in _LATENCIES:
        values = window.quantiles(name, _SHARES)
        shown = ["-"] * len(_SHARES) if values is None else [f"{1000 * v:.1f}" for v in values]
        lines.append(f"{label:12}" + "".join(f"{value:>10}" for value in shown))
    return lines


def _queue(window: Window, plan: Mapping[str, object]) -> list[str]:
    now = window.now
    limits = plan.get("limits")
    most = limits.get("max_num_seqs") if isinstance(limits, Mapping) else None
    of = "" if most is None else f" of {most}"
    return [
        f"running     {now.total('num_requests_running'):10.0f}{of}",
        f"waiting     {now.total('num_requests_waiting'):10.0f}",
    ]


def _blocks(window: Window) -> list[str]:
    states = window.now.by("kv_blocks", "state")
    total = sum(states.values())
    if not total:
        share = window.now.total("kv_cache_usage_perc")
        return [f"KV          {share:10.1%} used  [{_bar([('#', share), ('.', 1 - share)])}]"]
    shares = [(mark, states.get(name, 0.0) / total) for name, mark in _STATES]
    words = ", ".join(f"{mark} {name} {states.get(name, 0.0):.0f}" for name, mark in _STATES)
    return [f"KV blocks   {total:10.0f}  [{_bar(shares)}]  {words}"]


def _bar(shares: Sequence[tuple[str, float]]) -> str:
    """What is there at all has a mark; the last kind takes what is left."""
    *first, (rest, _) = shares
    marks = "".join(mark * max(round(share * BAR_WIDTH), share > 0) for mark, share in first)
    return marks[:BAR_WIDTH].ljust(BAR_WIDTH, rest)


def _cache(window: Window) -> list[str]:
    asked, found = (window.grown(f"prefix_cache_{name}_total") for name in ("queries", "hits"))
    rate = f"{found / asked:10.1%}" if asked else f"{'-':>10}"
    evicted = window.rate("prefix_cache_evictions_total")
    return [f"prefix hits {rate}  of prompt tokens, {evicted:.1f} blocks/s evicted"]


def _trouble(window: Window) -> list[str]:
    """Only what is not zero."""
    lines = []
    for name, label in (("requests_rejected_total", "reason"), ("requests_aborted_total", "cause")):
        counts = window.now.by(name, label)
        if counts:
            words = ", ".join(f"{kind} {count:.0f}" for kind, count in sorted(counts.items()))
            lines.append(f"{name.split('_')[1]:12}{words}  since the start")
    if preempted := window.rate("num_preemptions_total"):
        lines.append(f"preemptions {preempted:10.1f} /s")
    return lines
