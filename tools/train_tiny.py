"""Trains hal-tiny, the model that ships inside hal, on text that this script generates itself.

    python tools/train_tiny.py                  train from the start (77 minutes on two busy cores)
    python tools/train_tiny.py --resume         go on after an interruption
    python tools/train_tiny.py --eval-only      measure the finished checkpoint again

Every step draws its text from (seed, step) alone, so a resumed run sees what an unbroken one sees.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from tiny_corpus import evaluate, mixture
from tiny_corpus.tokenizer import TinyEncoder, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

REPOSITORY = Path(__file__).resolve().parent.parent
CONTEXT = 1024
SHORT_CONTEXT = 256
BATCH_TOKENS = 4096  # a step
IGNORED = -100  # a target without loss
TOKENIZER_DOCUMENTS = 30_000


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of the schedule: its rows grow to the whole context, and its rate falls."""

    until: int  # the first step after it
    zero_at: int  # the step at which its rate would be zero
    learning_rate: float
    drill: mixture.Drill | None = None

    def length_at(self, step: int) -> int:
        """Row length: short rows first, which are cheaper, then the whole context."""
        return SHORT_CONTEXT if step < 0.8 * self.zero_at else CONTEXT

    def rate_at(self, step: int) -> float:
        """Warm-up, a plateau, and a straight fall over the last 40 % of the steps so far."""
        fall = (self.zero_at - step) / (0.4 * self.zero_at)
        return self.learning_rate * min(1.0, (step + 1) / 50, fall)


# At the first rate attention saturates and the loss stalls; the later legs, gentler, free it again.
LEGS = (
    Leg(until=1800, zero_at=1800, learning_rate=8e-3),
    Leg(until=2700, zero_at=2700, learning_rate=2.5e-3),
    Leg(until=2900, zero_at=3150, learning_rate=5e-3),
    Leg(3250, zero_at=3250, learning_rate=4.5e-3, drill=mixture.SUMS_AND_COPYING),
    Leg(3850, zero_at=3850, learning_rate=5e-3, drill=mixture.ALL_THAT_IS_WEAK),
)
TOTAL_STEPS = LEGS[-1].until


def leg_at(step: int) -> Leg:
    return next(leg for leg in LEGS if step < leg.until)


@dataclass(frozen=True, slots=True)
class Settings:
    out: Path
    work: Path
    seed: int
    save_every: int
    export_every: int


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|bos|>"),
        eos_token_id=tokenizer.token_to_id("<|end|>"),
        pad_token_id=tokenizer.token_to_id("<|pad|>"),
    )


class Trainer:
    """The model, its two optimizers and the step it has reached."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        torch.manual_seed(settings.seed)
        texts = mixture.plain_texts(Random(f"tokenizer {settings.seed}"), TOKENIZER_DOCUMENTS)
        self.tokenizer = train_tokenizer(texts, vocab_size=2048)
        self.encoder = TinyEncoder(self.tokenizer)
        self.model = LlamaForCausalLM(model_config(self.tokenizer))
        self.optimizers = self._make_optimizers()
        self.step = 0
        self.seconds = 0.0

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        muon = torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        return [muon, adam]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss mask, both [rows, length + 1]."""
        leg = leg_at(step)
        length = leg.length_at(step)
        rng = Random(f"{self.settings.seed} {step}")
        count = BATCH_TOKENS // length
        rows = list(mixture.rows(rng, self.encoder, count, length + 1, leg.drill))
        return torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])

    def train_step(self) -> float:
        ids, learn = self.batch(self.step)
        targets = torch.where(learn[:, 1:], ids[:, 1:], IGNORED).flatten()
        wanted = targets.ne(IGNORED).nonzero().squeeze(1)
        # Few distinct sizes: every new one costs a new matrix kernel.
        padding = wanted.new_zeros(-len(wanted) % 256)
        targets = torch.cat((targets[wanted], torch.full_like(padding, IGNORED)))
        wanted = torch.cat((wanted, padding))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1)[wanted])
        loss = cross_entropy(logits.float(), targets, ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = leg_at(self.step).rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def run(self) -> None:
        started, smooth = time.monotonic() - self.seconds, math.nan
        while self.step < TOTAL_STEPS:
            loss = self.train_step()
            smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
            self.seconds = time.monotonic() - started
            if self.step % 25 == 0 or self.step <= 3:
                rate = self.step * BATCH_TOKENS / self.seconds
                print(
                    f"step {self.step}/{TOTAL_STEPS} loss {smooth:.4f} "
                    f"{self.seconds:.0f} s {rate:.0f} tokens/s",
                    flush=True,
                )
            if self.step % self.settings.save_every == 0:
                self.save()
            if self.step % self.settings.export_every == 0:
                self.export()
        self.save()
        self.export()

    def save(self) -> None:
        """Writes the state to resume from, in one move, so that a kill leaves the old one whole."""
        self.settings.work.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.settings.work / "state.partial"
        torch.save(state, partial)
        partial.replace(self.settings.work / "state.pt")

    def resume(self) -> None:
        state = torch.load(  # noqa: TID251 its own file, and weights_only runs no code
            self.settings.work / "state.pt", weights_only=True
        )
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def export(self) -> None:
        """Writes the checkpoint folder. bf16 is what the forward passes of training used."""
        out = self.settings.out
        shipped = LlamaForCausalLM(self.model.config)
        shipped.load_state_dict(self.model.state_dict())
        shipped.bfloat16()
        shipped.generation_config = GenerationConfig(
            bos_token_id=self.model.config.bos_token_id,
            eos_token_id=self.model.config.eos_token_id,
            pad_token_id=self.model.config.pad_token_id,
        )
        shipped.save_pretrained(out)
        save_tokenizer(self.tokenizer, out, CONTEXT)


def measure(settings: Settings, count: int, show: int, trained_seconds: float | None) -> None:
    """Evaluates the exported folder and records the outcome in its metrics.json."""
    path = settings.out / "metrics.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if trained_seconds is None:
        trained_seconds = before.get("training_seconds")
    tasks = evaluate.evaluate(settings.out, settings.seed, count, show)
    metrics = {
        "seed": settings.seed,
        "steps": TOTAL_STEPS,
        "training_tokens": TOTAL_STEPS * BATCH_TOKENS,
        "training_seconds": trained_seconds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "temperature": 0,
        "held_out": tasks,
    }
    path.write_text(json.dumps(metrics, indent=1) + "\n")


def parse_arguments(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "hal" / "tiny", metavar="FOLDER")
    parser.add_argument(
        "--work", type=Path, default=REPOSITORY / "build" / "tiny", metavar="FOLDER"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--export-every", type=int, default=400, metavar="STEPS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the state in --work")
    parser.add_argument("--eval-only", action="store_true", help="only measure the folder --out")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts for each task")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print for each task")
    return parser.parse_args(None if arguments is None else list(arguments))


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    settings = Settings(
        out=options.out,
        work=options.work,
        seed=options.seed,
        save_every=options.save_every,
        export_every=options.export_every,
    )
    seconds = None
    if not options.eval_only:
        trainer = Trainer(settings)
        if options.resume:
            trainer.resume()
        trainer.run()
        seconds = round(trainer.seconds)
    measure(settings, options.prompts, options.show, seconds)


if __name__ == "__main__":
    main()
