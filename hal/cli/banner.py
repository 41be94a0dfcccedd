"""What hal-serve prints when it is ready: model, device and why, memory, limits, how to call it."""

from __future__ import annotations

import json

from hal.server.front import Front


def print_banner(front: Front, url: str, *, has_key: bool) -> None:
    print("\n".join(banner_lines(front, url, has_key=has_key)), flush=True)


def banner_lines(front: Front, url: str, *, has_key: bool) -> list[str]:
    info = front.info
    return [
        f"model    {front.served_name} ({info.architecture}, {info.dtype})",
        f"device   {info.device}: {info.device_reason}",
        f"weights  {info.weights}",
        "memory",
        *(f"  {line}" for line in info.plan_text.splitlines()),
        f"limits   {info.max_model_len} tokens per sequence, {info.max_num_seqs} sequences, "
        f"{info.max_num_batched_tokens} tokens per step",
        f"routes   {url}/v1  (/ready /metrics /hal/plan)",
        *([f"page     {url}/"] if front.has_page else []),
        "",
        f"ready. Try:  {_curl(front.served_name, url, has_key)}",
    ]


def _curl(name: str, url: str, has_key: bool) -> str:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "Hello!"}],
        "stream": True,
    }
    key = '-H "Authorization: Bearer $HAL_API_KEY" ' if has_key else ""
    return (
        f"curl -N {url}/v1/chat/completions {key}-H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )
