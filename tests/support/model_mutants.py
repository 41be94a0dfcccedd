"""Damaged model files by the thousand, in a process of their own that has little memory.

    python model_mutants.py KIND COUNT SEED FOLDER

Each mutant of a valid file must be read or refused by a typed error. Prints one JSON line of
counts; ends with a traceback and the mutant's number where anything else happens.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch

from hal.engine.chat_template import ChatTemplate
from hal.engine.model_config import ModelConfig, read_model_config
from hal.engine.tokenizer import Tokenizer
from hal.engine.weights import CheckpointReader
from hal.errors import HalError

_MEMORY_BYTES = 4 * 2**30
_EXTREMES = (
    b"0", b"-1", b"1e999", b"NaN", b"9223372036854775807", b"18446744073709551616", b"1" * 400,
    b"null", b"true", b"[]", b"{}", b'""', b'"\xf0\x9f\x98\x80"', b'"\\ud800"', b"\xff",
    b"[" * 2000, b'{"a":' * 500, b"{{", b"{%", b"%}", b"|tojson", b"range(99999)",
)  # fmt: skip

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "sliding_window": None,
}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' and loop.index0 < 9 %}"
    "<|u|>{{ m['content'] | trim }}"
    "{% else %}{{ m | tojson }}{{ raise_exception('no') if m.role == 'x' else '' }}{% endif %}"
    "{% endfor %}{% set ns = namespace(n=0) %}{% for i in range(3) %}"
    "{% set ns.n = ns.n + i %}{% endfor %}"
    "{{ ns.n }}{{ strftime_now('%Y') }}{% if add_generation_prompt %}<|a|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to three edits: bytes changed, cut, doubled, or something extreme put in.

    Half of the mutants differ in digits only: they are well formed, and lie.
    """
    mutant = bytearray(data)
    digits = [i for i, byte in enumerate(mutant) if byte in b"0123456789"]
    if draw.random() < 0.5:
        for i in draw.sample(digits, min(len(digits), draw.randint(1, 3))):
            mutant[i] = draw.choice(b"0123456789")
        return bytes(mutant)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(mutant) + 1)
        end = min(at + draw.choice((1, 1, 2, 8, 64)), len(mutant))
        match draw.randrange(6):
            case 0 if at < len(mutant):
                mutant[at] = draw.randrange(256)
            case 1:
                del mutant[at:end]
            case 2:
                mutant[at:at] = mutant[at:end]
            case 3:
                mutant[at:end] = draw.choice(_EXTREMES)
            case 4:
                mutant[at:at] = draw.choice(_EXTREMES)
            case _:
                del mutant[at:]
    return bytes(mutant)


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Every other time the header's length fits the damaged header: what is in it gets read."""
    if draw.random() < 0.5:
        return mutate(data, draw)
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate(data[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def safetensors_file() -> bytes:
    """Two tensors, written by hand so that every part can be damaged."""
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(32))


def _read_weights(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with CheckpointReader(folder) as reader:
        for name in reader.names():
            values = reader.read(name).values
            assert isinstance(values, torch.Tensor)
            assert values.numel() * values.element_size() <= len(data)
            values.clone()  # reads every byte that it claims to have


def _read_config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    config = read_model_config(folder, ("llama",))
    assert isinstance(config, ModelConfig)
    assert len(config.windows) == config.num_layers


def _read_tokenizer(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    tokenizer = Tokenizer.load(folder)
    tokenizer.decode(tokenizer.encode("Hello, world 12 é\n"))


def _read_template(folder: Path, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    template = ChatTemplate({"default": text}, {}, "mutant", clock=lambda: datetime(2026, 1, 1))
    template.render(MESSAGES)


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "safetensors": _read_weights,
    "config": _read_config,
    "tokenizer": _read_tokenizer,
    "template": _read_template,
}


def original(kind: str, folder: Path) -> bytes:
    match kind:
        case "safetensors":
            return safetensors_file()
        case "config":
            return json.dumps(CONFIG).encode()
        case "template":
            return TEMPLATE.encode()
        case _:
            return (folder / "original.json").read_bytes()


def main() -> None:
    kind, count, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    read, data = READERS[kind], original(kind, folder)
    read(folder, data)
    change = mutate_safetensors if kind == "safetensors" else mutate
    counts = {"read": 0, "refused": 0}
    for i in range(count):
        mutant = change(data, random.Random(f"{seed}/{i}"))
        try:
            read(folder, mutant)
            counts["read"] += 1
        except HalError:
            counts["refused"] += 1
        except BaseException:  # a panic of a Rust library is no Exception
            print(f"mutant {i} of seed {seed}: {mutant[:2000]!r}", file=sys.stderr)
            raise
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
