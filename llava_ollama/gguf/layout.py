"""What a GGUF file is made of: its number types, its tensor types, and a header once read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from pathlib import Path

UINT32, INT32, BOOL, STRING, ARRAY = 4, 5, 7, 8, 9
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    UINT32: struct.Struct("<I"),
    INT32: struct.Struct("<i"),
    6: struct.Struct("<f"),
    BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
U32, U64 = SCALARS[UINT32], SCALARS[10]

# Name, elements in a block, bytes in a block. Q8_1 is left out: it is never stored, and the
# reference implementations disagree about its size.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

Scalar = str | int | float


class Array(Sequence[Scalar]):
    """An array of the metadata, decoded when it is looked at: vocabularies are long."""

    __slots__ = ("_count", "_item", "_raw")

    def __init__(self, raw: bytes, count: int, item: struct.Struct | None) -> None:
        self._raw, self._count, self._item = raw, count, item

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Scalar]:
        if self._item is None:
            return (text.decode(errors="replace") for text in self._strings())
        return (value for (value,) in self._item.iter_unpack(self._raw))

    @overload
    def __getitem__(self, index: int) -> Scalar: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Scalar]: ...
    def __getitem__(self, index: int | slice) -> Scalar | Sequence[Scalar]:
        return tuple(self)[index]

    def __repr__(self) -> str:
        return f"<{self._count} {'strings' if self._item is None else 'numbers'}>"

    def positions(self, text: str) -> tuple[int, ...]:
        """Return where the string `text` stands; empty also in an array of numbers."""
        wanted = text.encode()
        # One search of the whole costs a hundredth of walking through it, and mostly says no.
        if self._item is not None or U64.pack(len(wanted)) + wanted not in self._raw:
            return ()
        return tuple(at for at, found in enumerate(self._strings()) if found == wanted)

    def _strings(self) -> Iterator[bytes]:
        at = 0
        for _ in range(self._count):
            (length,) = U64.unpack_from(self._raw, at)
            yield self._raw[at + 8 : at + 8 + length]
            at += 8 + length


Value = Scalar | Array


@dataclass(frozen=True)
class Tensor:
    """What the header says about one tensor; `shape` has the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: str
    """A name such as `Q4_K`, or `type 99` where this reader does not know it."""
    offset: int
    """From the beginning of the file."""
    size: int
    """Bytes; for an unknown type, those up to the next tensor."""


@dataclass(frozen=True)
class Header:
    """All of a GGUF file but the tensors' data; offsets and sizes are in bytes."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    size: int
    """Of the whole file."""
    spans: Mapping[str, tuple[int, int]] = field(repr=False)
    """Where each key and its value begin and end in the file, for `mend`."""
    infos_offset: int = field(repr=False)
    """Where the keys end and the list of tensors begins."""
    infos_end: int = field(repr=False)
    """Where the list of tensors ends; padding follows, then the data."""

    def text(self, key: str) -> str | None:
        """Return the string under `key`; None if there is none or it is not a string."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Return the whole number under `key`; None if there is none or it is something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def array(self, key: str) -> Array | None:
        """Return the array under `key`; None if there is none or it is something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, Array) else None

    def tensor(self, name: str) -> Tensor | None:
        """Return the tensor called `name`, or None."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)
