"""Read the header of a GGUF file and trust nothing in it.

Every count, length, type and offset is checked against the size of the file and against fixed
limits before it is used, so a hostile or cut file costs bounded memory and time and ends in a
`GGUFError`. Tensor data is never read: that all of it is there follows from the extents.
"""

from __future__ import annotations

import itertools
import math
import stat
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

from llava_ollama.errors import GGUFError
from llava_ollama.gguf.layout import (
    ARRAY,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    U32,
    U64,
    Array,
    Header,
    Tensor,
    Value,
)

if TYPE_CHECKING:
    import struct
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Array", "Header", "Tensor", "Value", "read"]

MAX_HEADER = 64 << 20
"""Bytes. The largest vocabularies of today (260,000 tokens and their merges) take under 25 MB."""
MAX_KEYS = 10_000
MAX_TENSORS = 65_536
MAX_STRINGS = 1 << 22
"""In all arrays. Those vocabularies and their merges have under a million."""
MAX_NAME = 65_535
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4


def read(path: Path) -> Header:
    """Return the header of the GGUF file `path` (version 2 or 3, little-endian).

    Raises:
        GGUFError: it cannot be opened, is no GGUF file, or is truncated or damaged.
    """
    if "\0" in str(path):
        raise GGUFError(f"`{str(path)!a}` cannot be a path", hint="Check the path")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # before opening: a named pipe would block
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise GGUFError(f"`{path}` is {kind}", hint="Name the GGUF file itself")
        with path.open("rb", buffering=0) as file:
            return _parse(_Cursor(file, path, status.st_size))
    except FileNotFoundError as exc:
        raise GGUFError(f"`{path}` does not exist", hint="Check the path") from exc
    except PermissionError as exc:
        raise GGUFError(
            f"`{path}` cannot be read: permission denied", hint=f"chmod +r '{path}'"
        ) from exc
    except OSError as exc:
        raise GGUFError(f"`{path}` cannot be read: {exc.strerror}", hint="Check the path") from exc


class _Cursor:
    """Walks through the header; asks the file for no more than has been found plausible."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.path, self.size, self.at = path, size, 0
        self._file, self._data = file, bytearray()
        self.strings_left = MAX_STRINGS

    def damaged(self, what: str) -> NoReturn:
        """Give up on the file."""
        raise GGUFError(f"`{self.path}` is damaged: {what}", hint="Download the file again")

    def unpack(self, form: struct.Struct) -> int | float:
        """Return one number."""
        (value,) = form.unpack_from(self.take(form.size))
        number: int | float = value
        return number

    def count(self, form: struct.Struct = U64) -> int:
        """Return one unsigned number."""
        return int(self.unpack(form))

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes and go on behind them."""
        start, end = self.at, self.at + length
        self._require(end)
        self.at = end
        return bytes(self._data[start:end])

    def peek(self, length: int) -> bytes:
        """Return up to `length` next bytes and stay."""
        end = min(self.at + length, self.size)
        self._require(end)
        return bytes(self._data[self.at : end])

    def name(self, what: str) -> str:
        """Return a key or a tensor's name."""
        length = self.count()
        if length > MAX_NAME:
            self.damaged(f"{what} has a name of {length:,} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.damaged(f"the name of {what} is not UTF-8")

    def strings(self, count: int) -> bytes:
        """Return `count` strings as they are stored, and go on behind them."""
        start = at = self.at
        data, have, unpack = self._data, len(self._data), U64.unpack_from
        for _ in range(count):
            if at + 8 > have:
                self._require(at + 8)
                have = len(data)
            at += 8 + unpack(data, at)[0]
        self._require(at)
        self.at = at
        return bytes(self._data[start:at])

    def _require(self, end: int) -> None:
        have = len(self._data)
        if end > self.size:
            raise _truncated(self.path, "header needs at least", end, self.size)
        if end > MAX_HEADER:
            self.damaged(f"its header is larger than {MAX_HEADER >> 20} MB")
        while have < end:
            more = self._file.read(max(end - have, min(max(have, 1 << 14), 1 << 20)))
            if not more:
                raise _truncated(self.path, "header needs at least", end, have)
            self._data += more
            have = len(self._data)


def _truncated(path: Path, need: str, needed: int, there: int) -> GGUFError:
    return GGUFError(
        f"`{path}` is truncated: its {need} {needed:,} bytes, the file has {there:,}",
        hint="Download the file again",
    )


def _parse(cursor: _Cursor) -> Header:
    version = _version(cursor)
    tensor_count, key_count = cursor.count(), cursor.count()
    if key_count > MAX_KEYS or tensor_count > MAX_TENSORS:
        cursor.damaged(f"it claims {key_count:,} keys and {tensor_count:,} tensors")
    metadata: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for number in range(key_count):
        start = cursor.at
        key = cursor.name(f"key {number + 1}")
        if key in metadata:
            cursor.damaged(f"it has the key `{key}` twice")
        metadata[key] = _value(cursor, key)
        spans[key] = (start, cursor.at)
    infos_offset = cursor.at
    infos = [_info(cursor, f"tensor {number + 1}") for number in range(tensor_count)]
    alignment, infos_end = _alignment(cursor, metadata), cursor.at
    data_offset = -(-infos_end // alignment) * alignment
    tensors = _tensors(cursor, infos, alignment, data_offset)
    return Header(
        path=cursor.path,
        version=version,
        metadata=MappingProxyType(metadata),
        tensors=tensors,
        alignment=alignment,
        data_offset=data_offset,
        size=cursor.size,
        spans=MappingProxyType(spans),
        infos_offset=infos_offset,
        infos_end=infos_end,
    )


def _version(cursor: _Cursor) -> int:
    start = cursor.peek(512)
    if not start:
        raise GGUFError(f"`{cursor.path}` is empty", hint="Download the file again")
    if not start.startswith(b"GGUF"):
        raise GGUFError(f"`{cursor.path}` is not a GGUF file", hint=_what_it_is(start))
    cursor.take(4)
    version = cursor.count(U32)
    if version & 0xFFFF == 0:
        raise GGUFError(
            f"`{cursor.path}` is a big-endian GGUF file, which is not supported",
            hint="Convert it with gguf-convert-endian from the Python package gguf",
        )
    if version not in (2, 3):
        older = version < 2  # noqa: PLR2004 - the versions are named in the line above
        hint = "Convert the model again: " if older else "Update llava-ollama: "
        raise GGUFError(
            f"`{cursor.path}` is a GGUF file of version {version}",
            hint=hint + "versions 2 and 3 are supported",
        )
    return version


_LOOKS_LIKE = (
    (0, (b"<!doctype", b"<html", b"<?xml"), "a web page that a server sent instead of the file"),
    (0, (b"version https://git-lfs",), "a Git LFS pointer: run `git lfs pull` to get the file"),
    (0, (b"{", b"["), "JSON text, perhaps a server's error message"),
    (0, (b"lmgg", b"tjgg", b"fmgg", b"algg"), "of the format before GGUF: convert the model again"),
    (0, (b"\x89png", b"\xff\xd8\xff", b"gif8"), "a picture: name the .gguf file"),
    (0, (b"pk\x03\x04",), "a zip archive or a PyTorch checkpoint: a GGUF file is needed"),
    (8, (b'{"',), "a safetensors file: a GGUF file is needed"),
)


def _what_it_is(start: bytes) -> str:
    text = start.lstrip().lower()
    for at, marks, name in _LOOKS_LIKE:
        if text.startswith(marks, at):
            return f"It is {name}"
    return f"It starts with the bytes {start[:8].hex(' ')}, not with GGUF"


def _value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.count(U32)
    if kind == STRING:
        return cursor.take(cursor.count()).decode(errors="replace")
    if kind == ARRAY:
        return _array(cursor, key)
    if kind not in SCALARS:
        cursor.damaged(f"the key `{key}` has the unknown type {kind}")
    return cursor.unpack(SCALARS[kind])


def _array(cursor: _Cursor, key: str) -> Array:
    kind, count = cursor.count(U32), cursor.count()
    if kind == STRING:
        # Each has its length in front, so the file's size bounds the count.
        cursor.strings_left -= count
        if count > cursor.size // 8 or cursor.strings_left < 0:
            cursor.damaged(f"the key `{key}` claims {count:,} strings")
        return Array(cursor.strings(count), count, None)
    if kind not in SCALARS:  # llama.cpp takes no arrays of arrays either
        cursor.damaged(f"the key `{key}` is an array of the unknown type {kind}")
    return Array(cursor.take(count * SCALARS[kind].size), count, SCALARS[kind])


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _info(cursor: _Cursor, what: str) -> _Info:
    name = cursor.name(what)
    dimensions = cursor.count(U32)
    if dimensions > MAX_DIMENSIONS:
        cursor.damaged(f"the tensor `{name}` has {dimensions:,} dimensions")
    shape = tuple(cursor.count() for _ in range(dimensions))
    return _Info(name, shape, cursor.count(U32), cursor.count())


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT:
        cursor.damaged(f"`general.alignment` is `{alignment!r}`")
    if alignment & (alignment - 1):
        cursor.damaged(f"`general.alignment` is {alignment}, not a power of two")
    return alignment


def _tensors(
    cursor: _Cursor, infos: list[_Info], alignment: int, data_offset: int
) -> tuple[Tensor, ...]:
    order = sorted(infos, key=lambda info: info.offset)
    ends = [info.offset for info in order] + [max(cursor.size - data_offset, 0)]
    tensors: dict[str, Tensor] = {}
    for info, end in zip(order, ends[1:], strict=True):
        if info.name in tensors:
            cursor.damaged(f"it has the tensor `{info.name}` twice")
        if info.offset % alignment:
            cursor.damaged(f"the tensor `{info.name}` is not aligned to {alignment} bytes")
        name, size = _size(cursor, info, end - info.offset)
        tensors[info.name] = Tensor(info.name, info.shape, name, data_offset + info.offset, size)
    _inside(cursor, list(tensors.values()))
    return tuple(tensors[info.name] for info in infos)


def _size(cursor: _Cursor, info: _Info, room: int) -> tuple[str, int]:
    if info.type not in TENSOR_TYPES:
        return f"type {info.type}", max(room, 0)
    name, block, width = TENSOR_TYPES[info.type]
    row = info.shape[0] if info.shape else 1
    if row % block:
        cursor.damaged(f"the tensor `{info.name}` is {name} with rows of {row:,}")
    return name, math.prod(info.shape) // block * width


def _inside(cursor: _Cursor, ordered: list[Tensor]) -> None:
    needed = max((tensor.offset + tensor.size for tensor in ordered), default=0)
    if needed > cursor.size:
        raise _truncated(cursor.path, "tensors need", needed, cursor.size)
    for one, other in itertools.pairwise(ordered):
        if one.offset + one.size > other.offset:
            cursor.damaged(f"the tensors `{one.name}` and `{other.name}` overlap")
