"""Held-out documents of the embedded model's corpus: one text for every arm's perplexity."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from peers.protocol import Document

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "hal" / "tiny"
SEED = 7
PER_TASK = 4


def held_out() -> list[Document]:
    """Conversations with an answer each; only answers are scored. Needs transformers."""
    tools = str(REPOSITORY / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    from transformers import AutoTokenizer

    evaluate, mixture = (import_module(f"tiny_corpus.{name}") for name in ("evaluate", "mixture"))

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    documents = []
    for task in (*mixture.TASKS, "memory"):
        for prompt in evaluate.prompts_of(task, SEED, PER_TASK):
            text = evaluate.rendered(tokenizer, prompt)
            context = tokenizer(text, add_special_tokens=False).input_ids
            answer = tokenizer(f"{prompt.answer}<|end|>", add_special_tokens=False).input_ids
            documents.append(Document((*context, *answer), len(context)))
    return documents


def num_scored(documents: list[Document]) -> int:
    return sum(len(document.ids) - document.start for document in documents)
