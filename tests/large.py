"""Large but valid GGUF files for benchmarks: the tiny model and a tensor that nothing reads."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np

_BLOCK = 1 << 24


def padded(source: Path, out: Path, size: int) -> Path:
    """Write the model `source` to `out` with one tensor more, so that it has about `size` bytes."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=item)
    for tensor in reader.tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    count = max(size - source.stat().st_size, 64) // 64 * 64
    shape, i8 = (count // 64, 64), gguf.GGMLQuantizationType.I8
    writer.add_tensor_info("padding.weight", shape, np.dtype(np.int8), count, i8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
    with out.open("ab") as file:  # random, so that no file system can store it in less
        for done in range(0, count, _BLOCK):
            file.write(os.urandom(min(_BLOCK, count - done)))
    return out
