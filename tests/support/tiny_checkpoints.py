"""Tiny random checkpoints, made in the test process by transformers itself: the parity oracle."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

ARCHITECTURES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gpt2")
VOCAB_SIZE = 384
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEXTS = (
    "The quick brown fox jumps over the lazy dog while the river runs to the sea.",
    "def add(a, b):\n    return a + b  # 12 + 30 = 42",
    "Größe, café, naïve, 東京, Привет, 🙂 emoji and \t tabs",
)


def make_checkpoint(
    folder: Path,
    arch: str,
    *,
    dtype: str = "float32",
    original_format: bool = True,
    **overrides: Any,
) -> Path:
    """Write a random `arch` model with tokenizer and chat template; returns `folder`.

    original_format: with the names that its authors published, which transformers may rename
    `overrides` are keys of transformers' config class. The weights depend only on the arguments.
    """
    config = _config(arch, overrides)
    torch.manual_seed(20260)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomize(name, parameter)
    model.save_pretrained(folder, save_original_format=original_format)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`."""
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


@functools.cache
def train_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE over a few sentences: every byte string can be encoded."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    return tokenizer


@functools.cache
def sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """Shaped like Llama 2's: BPE over characters with U+2581 for spaces and byte fallback."""
    characters = ["\u2581", *map(chr, range(0x21, 0x7F)), "é", "東"]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "\u2581")]
    tokens = [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *characters,
        *(left + right for left, right in merges),
    ]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _lines() -> Iterator[str]:
    for text in _TEXTS:
        yield from [text] * 4


def _randomize(name: str, parameter: torch.Tensor) -> None:
    # Library initialisation gives near-uniform logits and zero biases, which would hide mistakes.
    if parameter.dim() == 1:
        centre = 0.0 if name.endswith("bias") else 1.0
        parameter.normal_(mean=centre, std=0.1)
    else:
        parameter.normal_(mean=0.0, std=0.08)


def _config(arch: str, overrides: dict[str, Any]) -> transformers.PretrainedConfig:
    if arch == "gpt2":
        sizes: dict[str, Any] = dict(n_embd=64, n_layer=2, n_head=4, n_positions=256)
    else:
        sizes = dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    if arch in ("qwen3", "qwen3_moe"):
        sizes["head_dim"] = 16
    if arch == "mixtral":
        sizes |= dict(num_local_experts=6, num_experts_per_tok=2)
    if arch == "qwen3_moe":
        sizes |= dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48)
    if arch == "mistral":
        sizes["sliding_window"] = None
    values = dict(vocab_size=VOCAB_SIZE, bos_token_id=None, eos_token_id=2, pad_token_id=0, **sizes)
    return transformers.AutoConfig.for_model(arch, **{**values, **overrides})
