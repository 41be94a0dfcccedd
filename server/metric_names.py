"""Which of our metrics vLLM has as well, and how it calls them: by family, without the prefix.

Names are those of vLLM's metrics documentation and of the dashboards in its repository; older
names that those still ask for are among them. What has no counterpart here is not made up:
`iteration_tokens_total` and `lora_requests_info` are missing.
"""

from __future__ import annotations

from enum import StrEnum

OURS, THEIRS = "hal:", "vllm:"

SAME = frozenset(
    (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("num_preemptions", "prompt_tokens", "generation_tokens", "request_success"),
        *("prefix_cache_queries", "prefix_cache_hits"),
        *("time_to_first_token_seconds", "inter_token_latency_seconds"),
        *("e2e_request_latency_seconds", "request_queue_time_seconds"),
        *("request_prefill_time_seconds", "request_decode_time_seconds"),
        *("request_inference_time_seconds", "request_prompt_tokens"),
        *("request_generation_tokens", "request_max_num_generation_tokens"),
        *("request_params_n", "request_params_max_tokens", "cache_config_info"),
        "cpu_cache_usage_perc",
    )
)
OLDER = {
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "inter_token_latency_seconds": "time_per_output_token_seconds",
    "prefix_cache_queries": "gpu_prefix_cache_queries",
    "prefix_cache_hits": "gpu_prefix_cache_hits",
}
RENAMED_LABELS = {"num_blocks": "num_gpu_blocks"}


class MetricsCompat(StrEnum):
    """Values of --metrics-compat."""

    NONE = "none"
    VLLM = "vllm"
