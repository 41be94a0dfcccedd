"""What weight formats and an int8 KV cache cost the embedded model: perplexity and exact answers.

    python tools/quantization_loss.py --device cpu --threads 2

Every answer token is forced in turn, so that all formats see the same texts; the engine itself is
measured, with all the rounding that it does. The texts are held out.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny_corpus import evaluate, mixture
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from hal import LLM, SamplingParams
from hal.config import AUTO
from hal.kv import KV_FORMATS
from hal.weights import UNQUANTIZED, WEIGHT_FORMATS

_SHIPPED = Path(__file__).resolve().parents[1] / "hal" / "tiny"
_SEED = 11
_SETTINGS = [(name, AUTO) for name in (UNQUANTIZED, *WEIGHT_FORMATS)]
_SETTINGS += [(name, kv) for name in (UNQUANTIZED, "int4") for kv in KV_FORMATS]
_FORCED = 100.0  # a logit bias that decides; log-probabilities are of the logits before it


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the answer that is right, as tokens."""

    context: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Score:
    """Nats a token of the right answers, how many were given, and what the weights and a token in
    the cache take."""

    loss: float
    exact: float
    weights_bytes: int
    kv_bytes_per_token: float


def texts_of(tokenizer: Tokenizer, count: int) -> list[Text]:
    """`count` of each task, those with many right answers included."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    return [
        Text(tokens(evaluate.rendered(tokenizer, prompt)), tokens(prompt.answer + "<|end|>"))
        for task in (*mixture.TASKS, "memory")
        for prompt in evaluate.prompts_of(task, _SEED, count)
    ]


def measure(llm: LLM, texts: list[Text]) -> Score:
    prompts, settings = [], []
    for text in texts:
        for position, token in enumerate(text.answer):
            prompts.append({"prompt_token_ids": text.context + text.answer[:position]})
            settings.append(
                SamplingParams(
                    temperature=0.0, max_tokens=1, logprobs=0, logit_bias={token: _FORCED}
                )
            )
    forced = llm.generate(prompts, settings)  # type: ignore[arg-type]
    losses = [-(output.outputs[0].cumulative_logprob or 0.0) for output in forced]
    free = llm.generate(
        [{"prompt_token_ids": text.context} for text in texts],  # type: ignore[misc]
        [SamplingParams(temperature=0.0, max_tokens=len(text.answer)) for text in texts],
    )
    exact = sum(
        list(output.outputs[0].token_ids) == text.answer
        for output, text in zip(free, texts, strict=True)
    )
    plan = llm.plan
    return Score(
        sum(losses) / len(losses), exact / len(texts), plan.weights_bytes, plan.kv_bytes_per_token
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", help="settings whose `WEIGHTS CACHE` contains this")
    parser.add_argument("--count", type=int, default=20, help="texts of each task")
    options = parser.parse_args()
    texts = texts_of(AutoTokenizer.from_pretrained(_SHIPPED), options.count)
    sys.stdout.write(f"{len(texts)} texts, {sum(len(t.answer) for t in texts)} answer tokens\n")
    for name, kv in _SETTINGS:
        if options.only not in f"{name} {kv}":
            continue
        with LLM(
            device=options.device,
            threads=options.threads,
            quantization=name,
            kv_cache_dtype=kv,
            show_progress=False,
        ) as llm:
            score = measure(llm, texts)
        sys.stdout.write(
            f"| {name} | {kv} | {score.weights_bytes / 1e6:.1f} MB | "
            f"{score.kv_bytes_per_token:.0f} | {math.exp(score.loss):.4f} | {score.exact:.1%} |\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
