"""How many tokens a request took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Usage:
    """Tokens of a whole API request; each prompt counts once, whatever n is."""

    num_prompt: int = 0
    num_completion: int = 0
    num_cached: int = 0
    num_reasoning: int = 0

    def as_json(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_completion,
            "total_tokens": self.num_prompt + self.num_completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
            "completion_tokens_details": {"reasoning_tokens": self.num_reasoning},
        }
