"""Held-out loss and greedy exact match of a finished checkpoint, task by task."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers import PreTrainedTokenizerBase as Tokenizer

from . import mixture, talk
from .document import Chat, Example, Turn

_NEW_TOKENS = {"story": 320, "poem": 96, "about hal": 80, "counting": 96}


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything before the answer, and the answer."""

    task: str
    context: Chat
    answer: str


def _prompt(example: Example, index: int) -> Prompt:
    """Every second prompt has a system message, so that both ways are measured."""
    system = mixture.SYSTEM_MESSAGES[index % len(mixture.SYSTEM_MESSAGES)]
    lead = (Turn("system", system),) if index % 2 else ()
    context = Chat((*lead, *example.turns[:-1]), example.tools)
    return Prompt(example.task, context, example.answer)


def _memory_prompts(rng: Random, count: int) -> list[Prompt]:
    """Facts stated up to about 900 tokens before they are asked for."""
    prompts = []
    for index in range(count):
        filler = mixture.exchanges(rng, index % 14)
        chat, _ = talk.remembered(rng, filler)
        prompts.append(Prompt("memory", Chat(chat.turns[:-1]), chat.turns[-1].content))
    return prompts


def prompts_of(task: str, seed: int, count: int) -> list[Prompt]:
    rng = Random(f"held-out {task} {seed}")
    if task == "memory":
        return _memory_prompts(rng, count)
    return [_prompt(example, i) for i, example in enumerate(mixture.held_out(task, rng, count))]


def rendered(tokenizer: Tokenizer, prompt: Prompt) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.context.turns]
    tools: list[Any] = [tool.openai() for tool in prompt.context.tools]
    text = tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    return text


@torch.inference_mode()
def answers(model: Any, tokenizer: Tokenizer, prompts: list[Prompt]) -> list[str]:
    """Greedy answers, in order. `model` is Any: generate() is annotated so that no model fits."""
    found: dict[int, str] = {}
    texts = [rendered(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), 50):
        part = order[start : start + 50]
        batch = tokenizer(
            [texts[index] for index in part],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        limit = _NEW_TOKENS.get(prompts[part[0]].task, 64)
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=limit,
            do_sample=False,
        )
        for index, ids in zip(part, out[:, batch["input_ids"].shape[1] :], strict=True):
            found[index] = str(tokenizer.decode(ids, skip_special_tokens=True))
    return [found[index] for index in range(len(texts))]


@torch.inference_mode()
def answer_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[Prompt]) -> float:
    """Mean cross-entropy (nats a token) of the expected answers."""
    total, tokens = 0.0, 0
    for prompt in prompts:
        context = tokenizer(rendered(tokenizer, prompt), add_special_tokens=False).input_ids
        answer = tokenizer(prompt.answer + "<|end|>", add_special_tokens=False).input_ids
        ids = torch.tensor([context + answer])
        labels = torch.tensor([[-100] * len(context) + answer])
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        total += float(loss) * len(answer)
        tokens += len(answer)
    return total / tokens


def is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def is_greeting(text: str) -> bool:
    return text.startswith(("Hello", "Good ")) and text.endswith("How can I help you?")


def is_whole_story(prompt: Prompt, text: str) -> bool:
    """A beginning and an end, and the hero that was asked for, if any was."""
    asked = re.search(r"about .*?(\w+)(?:, please)?[.?]?$", prompt.context.turns[-1].content)
    named = asked is None or asked[1].lower() in text.lower()
    return named and text.startswith(("Once", "There was")) and text.endswith(".")


def _score(task: str, prompts: list[Prompt], texts: list[str]) -> dict[str, float]:
    pairs = list(zip(prompts, texts, strict=True))
    count = len(pairs)
    scores: dict[str, float] = {"prompts": count}
    if task not in ("story", "poem"):  # these have many right answers
        scores["exact_match"] = sum(text == prompt.answer for prompt, text in pairs) / count
    if task == "json":
        scores["valid_json"] = sum(is_json_object(text) for text in texts) / count
    if task == "greeting":
        scores["greeted"] = sum(is_greeting(text) for text in texts) / count
    if task == "story":
        scores["whole_story"] = sum(is_whole_story(prompt, text) for prompt, text in pairs) / count
    return scores


def evaluate(folder: Path, seed: int, count: int, show: int) -> dict[str, dict[str, float]]:
    """Scores of every task. `show` wrong answers of each are printed."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    results: dict[str, dict[str, float]] = {}
    for task in (*mixture.TASKS, "memory"):
        prompts = prompts_of(task, seed, count)
        texts = answers(model, tokenizer, prompts)
        results[task] = _score(task, prompts, texts)
        results[task]["loss"] = round(answer_loss(model, tokenizer, prompts), 4)
        print(f"{task:15} " + "  ".join(f"{k} {v:g}" for k, v in results[task].items()), flush=True)
        wrong = [(p, t) for p, t in zip(prompts, texts, strict=True) if t != p.answer]
        for prompt, text in wrong[:show]:
            print(f"    {prompt.context.turns[-1].content!r} -> {text!r}, not {prompt.answer!r}")
    return results
