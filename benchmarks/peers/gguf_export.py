"""One GGUF with the weights of a checkpoint folder, bfloat16 as they are; no tokenizer: ids only.

    python -m peers.gguf_export FOLDER FILE

llama.cpp's own quantiser makes the smaller formats from it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.checkpoint import Geometry, read_bfloat16, read_geometry

if TYPE_CHECKING:
    import gguf

ARCHITECTURES = ("llama", "qwen2")
_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a checkpoint's tensor."""
    stem, _, suffix = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer is None:
        return f"{_TOP[stem]}.{suffix}"
    return f"blk.{layer[1]}.{_LAYER[layer[2]]}.{suffix}"


def interleaved(rows: Any, num_heads: int) -> Any:
    """Rows of q or k, so that rotary pairs stand side by side, as llama.cpp's llama wants them."""
    shape = rows.shape
    halves = rows.reshape(num_heads, 2, shape[0] // num_heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)


def as_float32(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _heads(name: str, geometry: Geometry) -> int:
    """How many heads to interleave; 0 where rows stay as they are."""
    if geometry.model_type != "llama":
        return 0
    if ".q_proj." in name:
        return geometry.num_heads
    return geometry.num_kv_heads if ".k_proj." in name else 0


def _add_settings(writer: gguf.GGUFWriter, geometry: Geometry) -> None:
    writer.add_context_length(geometry.max_len)
    writer.add_embedding_length(geometry.hidden_size)
    writer.add_block_count(geometry.num_layers)
    writer.add_feed_forward_length(geometry.intermediate_size)
    writer.add_head_count(geometry.num_heads)
    writer.add_head_count_kv(geometry.num_kv_heads)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    writer.add_rope_dimension_count(geometry.head_dim)
    writer.add_rope_freq_base(geometry.rope_theta)
    writer.add_layer_norm_rms_eps(geometry.rms_norm_eps)
    writer.add_vocab_size(geometry.vocab_size)
    writer.add_tokenizer_model("none")


def export(folder: Path, path: Path) -> None:
    import gguf  # is in llama.cpp's environment only

    geometry = read_geometry(folder)
    if geometry.model_type not in ARCHITECTURES:
        raise ValueError(f"{geometry.model_type} is not among {', '.join(ARCHITECTURES)}")
    writer = gguf.GGUFWriter(path, geometry.model_type)
    _add_settings(writer, geometry)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, bits in read_bfloat16(folder):
        heads = _heads(name, geometry)
        values = interleaved(bits, heads) if heads else bits
        if values.ndim == 1:  # llama.cpp computes norms and biases in float32
            writer.add_tensor(gguf_name(name), as_float32(values))
            continue
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(gguf_name(name), np.asarray(values).view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
