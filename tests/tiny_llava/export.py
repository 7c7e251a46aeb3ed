"""Write the trained model as the GGUF files that Ollama and llama.cpp read.

The int4 model has Q4_K blocks and Q8_0 embeddings (the vocabulary is small), rounded plainly; the
card tells what that costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from tests.tiny_llava import decoder, eyes, scene, vision
from tests.tiny_llava.files import NAMES
from tests.tiny_llava.tokenizer import BEGIN, TURN_END, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Weights = Mapping[str, NDArray[np.float32]]

TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_ORDINARY, _CONTROL = 1, 3  # token types of llama.cpp
_FILE_TYPES = {"f16": 1, "int4": 14}  # llama.cpp's LLAMA_FTYPE_MOSTLY_F16 and _Q4_K_S


def export(weights: Weights, tokenizer: Tokenizer, folder: Path) -> None:
    """Write f16, int4 and projector into `folder`; `weights` is `train.Model`'s state."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(weights, tokenizer, folder / NAMES.f16, quant="f16")
    write_model(weights, tokenizer, folder / NAMES.int4, quant="int4")
    write_projector(weights, folder / NAMES.projector, layout="identity")


def write_model(weights: Weights, tokenizer: Tokenizer, path: Path, *, quant: str) -> None:
    """Write the language model in `quant`: f16 or int4."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-llava shapes")
    writer.add_license("Apache-2.0")
    writer.add_file_type(_FILE_TYPES[quant])
    writer.add_quantization_version(2)
    writer.add_context_length(decoder.CONTEXT)
    writer.add_embedding_length(decoder.WIDTH)
    writer.add_block_count(decoder.BLOCKS)
    writer.add_feed_forward_length(decoder.INNER)
    writer.add_head_count(decoder.HEADS)
    writer.add_head_count_kv(decoder.KEY_HEADS)
    writer.add_rope_dimension_count(decoder.HEAD)
    writer.add_rope_freq_base(decoder.ROPE_BASE)
    writer.add_layer_norm_rms_eps(decoder.EPSILON)
    writer.add_vocab_size(len(tokenizer.tokens))
    _add_tokenizer(writer, tokenizer)
    for name, values in _of(weights, "decoder.").items():
        outside = "blk." not in name
        _add(writer, name, values, quant if quant == "f16" or not outside else "q8_0")
    _close(writer)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    special = len(tokenizer.tokens) - len(tokenizer.ordinary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([_ORDINARY] * len(tokenizer.ordinary) + [_CONTROL] * special)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.number[BEGIN])
    writer.add_eos_token_id(tokenizer.number[TURN_END])
    writer.add_eot_token_id(tokenizer.number[TURN_END])
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def write_projector(weights: Weights, path: Path, *, layout: str) -> None:
    """Write vision tower and projector.

    llama.cpp runs all blocks but the last (issue 25817), unless `clip.vision.feature_layer` says
    otherwise. `layout` "identity" stores one block more that changes nothing, right whether it is
    run or not; "key" stores the three and the key; "short" the three alone: one too few is run.
    """
    blocks = vision.BLOCKS + (layout == "identity")
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name("tiny-llava shapes mmproj")
    writer.add_license("Apache-2.0")
    writer.add_file_type(_FILE_TYPES["f16"])
    for name, flag in {
        "text_encoder": False,
        "vision_encoder": True,
        "llava_projector": True,
    }.items():
        writer.add_bool(f"clip.has_{name}", flag)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)  # quick-GELU, as CLIP has it
    numbers = {
        "image_size": scene.SIDE,
        "patch_size": scene.PATCH,
        "embedding_length": vision.WIDTH,
        "feed_forward_length": vision.INNER,
        "block_count": blocks,
        "projection_dim": vision.OUT,
        "attention.head_count": vision.HEADS,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.EPSILON)
    writer.add_array("clip.vision.image_mean", list(eyes.MEAN))
    writer.add_array("clip.vision.image_std", list(eyes.STD))
    if layout == "key":
        writer.add_array("clip.vision.feature_layer", [vision.BLOCKS])
    for name, values in _stored(weights, blocks).items():
        single = name in {"v.class_embd", "v.position_embd.weight"}
        _add(writer, name, values, "f32" if single else "f16")
    _close(writer)


_TAUGHT_ONLY = ("number.", "background.", "thing.")


def _stored(weights: Weights, blocks: int) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the projector's file by their names there."""
    stored: dict[str, NDArray[np.float32]] = {}
    own = _of(weights, "vision.")
    for name, values in own.items():
        if name.startswith("mm"):
            stored[f"mm.{name.removeprefix('mm')}"] = values
        elif not name.startswith(_TAUGHT_ONLY):
            stored[f"v.{name}" + ".weight" * (name == "position_embd")] = values
    last = f"v.blk.{vision.BLOCKS - 1}."
    for more in range(vision.BLOCKS, blocks):
        for name in [name for name in stored if name.startswith(last)]:
            nothing = name.split(".")[3] in {"attn_out", "ffn_down"}
            stored[name.replace(last, f"v.blk.{more}.")] = stored[name] * (0 if nothing else 1)
    return stored


def _of(weights: Weights, part: str) -> dict[str, NDArray[np.float32]]:
    return {
        name.removeprefix(part): values for name, values in weights.items() if name.startswith(part)
    }


def _add(writer: Any, name: str, values: NDArray[np.float32], quant: str) -> None:
    if values.ndim == 1 or quant == "f32":
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    elif quant == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    elif quant == "q8_0":
        writer.add_tensor(name, gguf.quants.quantize(values, Kind.Q8_0), raw_dtype=Kind.Q8_0)
    else:
        writer.add_tensor(name, q4_k(values), raw_dtype=Kind.Q4_K)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q4_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return rows of a multiple of 256 values as Q4_K, each value rounded to the nearest.

    A block of 256 is 8 groups of 32: value = d * scale * q - dmin * least (0 <= q < 16, scale and
    least of 6 bits). The `gguf` package reads this format and does not write it. Source of the
    layout: llama.cpp, block_q4_K in ggml/src/ggml-common.h.
    """
    groups = values.reshape(-1, 8, 32).astype(np.float32)
    least = -np.minimum(groups.min(-1), 0)
    scale = np.maximum(groups.max(-1) + least, 0) / 15
    d, scales = _six_bits(scale)
    dmin, leasts = _six_bits(least)
    step = d.astype(np.float32) * scales
    offset = dmin.astype(np.float32) * leasts
    lifted = (groups + offset[..., None]) / np.where(step > 0, step, np.inf)[..., None]
    q = np.clip(np.rint(lifted), 0, 15).astype(np.uint8)
    halves = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(len(groups), 128)
    parts = [d.view(np.uint8), dmin.view(np.uint8), _packed(scales, leasts), halves]
    return np.concatenate(parts, 1).reshape(len(values), -1)


def _six_bits(values: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return n x 1 factors and the n x 8 values in units of them, 0 to 63."""
    unit = (values.max(-1, keepdims=True) / 63).astype(np.float16)
    single = unit.astype(np.float32)
    return unit, np.clip(np.rint(values / np.where(single > 0, single, np.inf)), 0, 63).astype(
        np.uint8
    )


def _packed(scales: NDArray[np.uint8], leasts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 16 six-bit numbers of each block in 12 bytes."""
    low, high = slice(0, 4), slice(4, 8)
    first = scales[:, low] | ((scales[:, high] >> 4) << 6)
    second = leasts[:, low] | ((leasts[:, high] >> 4) << 6)
    third = (scales[:, high] & 15) | ((leasts[:, high] & 15) << 4)
    return np.concatenate([first, second, third], 1)
