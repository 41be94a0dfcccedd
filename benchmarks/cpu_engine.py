"""hal beside transformers on the CPU: same weights, same tokens, same threads, runs interleaved.

    python benchmarks/cpu_engine.py --model qwen2.5-0.5b --rounds 5

Cases: decode of one sequence, prefill of 1024 tokens, and 16 ragged requests against transformers
one by one and as one padded batch. Every ratio is ours over theirs of the same round.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import record
import torch
import transformers

from hal import LLM, SamplingParams

MAX_MODEL_LEN = 2048
DECODE_PROMPT, DECODE_TOKENS = 32, 48
PREFILL_TOKENS = 1024
MIXED_REQUESTS = 16


@dataclass(frozen=True, slots=True)
class Work:
    """One prompt and how many tokens to add to it."""

    prompt: tuple[int, ...]
    num_output: int


Arm = Callable[[list[Work]], list[list[int]]]


class Hal:
    """Our engine; every round starts without cached prefixes."""

    def __init__(self, folder: Path) -> None:
        self.llm = LLM(
            str(folder),
            device="cpu",
            dtype="bfloat16",
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MIXED_REQUESTS,
            enable_prefix_caching=False,
        )

    def run(self, work: list[Work]) -> list[list[int]]:
        params = [
            SamplingParams(temperature=0.0, max_tokens=w.num_output, ignore_eos=True) for w in work
        ]
        outputs = self.llm.generate([w.prompt for w in work], params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


class Transformers:
    """transformers' own generate, eager, with its default attention."""

    def __init__(self, folder: Path) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def one_by_one(self, work: list[Work]) -> list[list[int]]:
        return [self._generate([w])[0] for w in work]

    def one_batch(self, work: list[Work]) -> list[list[int]]:
        """Left-padded to the longest prompt, run to the longest output."""
        return self._generate(work)

    def _generate(self, work: list[Work]) -> list[list[int]]:
        width = max(len(w.prompt) for w in work)
        ids = torch.zeros(len(work), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, w in enumerate(work):
            ids[row, width - len(w.prompt) :] = torch.tensor(w.prompt)
            mask[row, width - len(w.prompt) :] = 1
        longest = max(w.num_output for w in work)
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=longest, do_sample=False
            )
        return [out[row, width : width + w.num_output].tolist() for row, w in enumerate(work)]


def workloads(vocab_size: int) -> dict[str, list[Work]]:
    rng = random.Random(16)

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, vocab_size) for _ in range(length))

    mixed = [
        Work(prompt(rng.randint(32, 256)), rng.randint(16, 128)) for _ in range(MIXED_REQUESTS)
    ]
    return {
        "decode-1": [Work(prompt(DECODE_PROMPT), DECODE_TOKENS)],
        "prefill-1024": [Work(prompt(PREFILL_TOKENS), 1)],
        "mixed-16": mixed,
    }


def timed(arm: Arm, work: list[Work]) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    tokens = arm(work)
    return time.perf_counter() - start, tokens


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of requests whose first four tokens are equal: both arms run the same model."""
    same = sum(a[:4] == b[:4] for a, b in zip(ours, theirs, strict=True))
    return same / len(ours)


def compare(case: str, work: list[Work], ours: Arm, peer: Arm, rounds: int) -> dict[str, object]:
    """Interleaved rounds after one warm-up of each arm."""
    warm = [Work(work[0].prompt, 2)]
    ours(warm), peer(warm)
    our_s, peer_s, ratios, agree = [], [], [], 0.0
    for _ in range(rounds):
        our_time, our_tokens = timed(ours, work)
        peer_time, peer_tokens = timed(peer, work)
        our_s.append(our_time)
        peer_s.append(peer_time)
        ratios.append(peer_time / our_time)
        agree = agreement(our_tokens, peer_tokens)
    num_tokens = sum(w.num_output for w in work)
    return {
        "case": case,
        "output_tokens": num_tokens,
        "prompt_tokens": sum(len(w.prompt) for w in work),
        "our_seconds": asdict(record.spread(our_s)),
        "peer_seconds": asdict(record.spread(peer_s)),
        "speedup": asdict(record.spread(ratios)),
        "first_tokens_equal": agree,
    }


def print_row(row: dict[str, object]) -> None:
    ours, peer, ratio = row["our_seconds"], row["peer_seconds"], row["speedup"]
    assert isinstance(ours, dict) and isinstance(peer, dict) and isinstance(ratio, dict)
    sys.stdout.write(
        f"{row['case']:<26} ours {ours['median']:8.3f} s  transformers {peer['median']:8.3f} s  "
        f"{ratio['median']:5.2f} x  ({ratio['lowest']:.2f} to {ratio['highest']:.2f})  "
        f"tokens equal {row['first_tokens_equal']:.0%}\n"
    )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--models", type=Path, default=Path("/tmp/hal-models"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mixed-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = models.make_model(options.model, options.models)
    ours, peer = Hal(folder), Transformers(folder)
    report = {
        **record.header("cpu_engine"),
        "model": options.model,
        "dtype": "bfloat16",
        "threads": options.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    work = workloads(models.SHAPES[options.model].vocab_size)
    plan = (
        ("decode-1", "decode-1", peer.one_by_one, options.rounds),
        ("prefill-1024", "prefill-1024", peer.one_by_one, options.rounds),
        ("mixed-16", "mixed-16 one by one", peer.one_by_one, options.mixed_rounds),
        ("mixed-16", "mixed-16 static batch", peer.one_batch, options.mixed_rounds),
    )
    rows = []
    for name, case, arm, rounds in plan:
        rows.append(compare(case, work[name], ours.run, arm, rounds))
        print_row(rows[-1])
    out = options.out or record.RESULTS / f"cpu_engine-{options.model}.json"
    record.write(out, {**report, "rows": rows})


if __name__ == "__main__":
    main()
