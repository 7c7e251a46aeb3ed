"""The tiny pair in the form in which xtuner published its own: from before today's keys.

Written with the `gguf` package, so that what mends these files is not what made them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MISSING_IN_MODEL = (
    "tokenizer.ggml.pre",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
)
MISSING_IN_PROJECTOR = ("clip.projector_type", "clip.vision.feature_layer")
BLOCKS = 3
"""Those that the tiny projector was trained with; its bundled form adds one that does nothing."""


def published_model(source: Path, out: Path) -> Path:
    """Write the model `source` to `out` without the later keys, its end token the wrong one."""
    tokens = gguf.GGUFReader(source).fields["tokenizer.ggml.tokens"].contents()
    changes = dict.fromkeys(MISSING_IN_MODEL)
    end = tokens.index("<|end_of_text|>")
    return rewrite(source, out, changes | {"tokenizer.ggml.eos_token_id": end})


def published_projector(
    source: Path, out: Path, *, projector_type: bool = False, feature_layer: bool = False
) -> Path:
    """Write the projector `source` to `out` with its real blocks only, keys as asked for."""
    changes: dict[str, Any] = dict.fromkeys(MISSING_IN_PROJECTOR)
    changes["clip.vision.block_count"] = BLOCKS
    if projector_type:
        changes["clip.projector_type"] = "mlp"
    if feature_layer:
        changes["clip.vision.feature_layer"] = [BLOCKS]
    return rewrite(source, out, changes, keep=lambda name: f"v.blk.{BLOCKS}." not in name)


def rewrite(
    source: Path,
    out: Path,
    changes: Mapping[str, Any],
    *,
    keep: Callable[[str], bool] = lambda _: True,
) -> Path:
    """Write `source` to `out` with keys set (None removes one) and only the tensors to `keep`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.get(name, field.contents())
        if value is not None:
            kind = field.types[0]
            item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, sub_type=item)
    for name, value in changes.items():
        if value is not None and name not in reader.fields:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    tensors = [tensor for tensor in reader.tensors if keep(tensor.name)]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
    return out


def write(out: Path, keys: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """Write a GGUF file of these keys, `general.architecture` first, and F32 tensors of zeros.

    The shapes have the fastest dimension first, as in the file. Whole numbers become INT32.
    """
    writer = gguf.GGUFWriter(out, keys["general.architecture"])
    for name, value in keys.items():
        if name != "general.architecture":
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape[::-1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
