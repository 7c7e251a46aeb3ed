"""Write a copy of a weight file with its metadata mended; no byte of a tensor changes.

What is missing is decided in `changes`; here it is written. Where something was changed, the copy
tells in its metadata of what it was made, and in which keys it differs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from llava_ollama import whole
from llava_ollama.errors import GGUFError, NotEnoughSpace
from llava_ollama.gguf.changes import Change, planned, provenance, sentence
from llava_ollama.gguf.layout import ARRAY, BOOL, INT32, SCALARS, STRING, U32, U64, UINT32
from llava_ollama.gguf.reader import Header, read
from llava_ollama.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 8 << 20
_COUNTS = 24
"""Bytes before the first key: magic, version, number of tensors, number of keys."""


@dataclass(frozen=True)
class Mended:
    """What was done; with no `changes` the file is a plain copy of its source."""

    path: Path
    changes: tuple[str, ...]
    sha256: str
    """Of the written file."""
    source_sha256: str
    size: int
    """Of the written file, in bytes."""


def mend(  # noqa: PLR0913 - keywords, each of them something a caller may know
    source: Path,
    out: Path,
    *,
    layers: int | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Mended:
    """Write `source` with its metadata mended to `out`, whole or not at all.

    `layers` is how many blocks a projector's vision tower was trained with, where that is known;
    `sha256` that of `source`, which else is read twice.

    Raises:
        GGUFError: `source` is damaged or cannot be judged, or `out` may not be written.
        NotEnoughSpace: the disk cannot hold the copy.
    """
    header = read(source)
    place = check_place(header, out, overwrite=overwrite)
    recipe = Recipe.of(header, layers=layers, sha256=sha256)
    with _translated(header, out), whole.replacing(place) as target:
        return recipe.write(target, out, reporter)


@dataclass(frozen=True)
class Recipe:
    """How a mended copy is made of one file; nothing is written before `write`."""

    header: Header
    changes: tuple[Change, ...]
    source_sha256: str
    layers: int | None = None

    @classmethod
    def of(cls, header: Header, *, layers: int | None = None, sha256: str | None = None) -> Recipe:
        """Decide what to change in a file; it is hashed where its `sha256` is not given.

        Raises:
            GGUFError: the file cannot be judged.
        """
        changes = planned(header, layers)
        return cls(header, tuple(changes), sha256 or _hash(header.path), layers)

    def digest(self, reporter: Reporter = SILENT) -> tuple[str, int]:
        """Return sha256 and size, in bytes, of the copy without making one."""
        with _translated(self.header, self.header.path):
            done = self.write(_Nothing(), self.header.path, reporter)
        return done.sha256, done.size

    def write(self, target: _Sink, out: Path, reporter: Reporter = SILENT) -> Mended:
        """Write the copy, which is to be known as `out`, into an open file.

        Raises:
            GGUFError: the source is not, or no more, what it was.
        """
        told = tuple(sentence(self.header, change) for change in self.changes)
        with self.header.path.open("rb") as source:
            digest, size = self._copy(source, target, reporter)
        return Mended(out, told, digest, self.source_sha256, size)

    def _copy(self, source: BinaryIO, target: _Sink, reporter: Reporter) -> tuple[str, int]:
        header, task = self.header, f"mend {self.header.path.name}"
        old = source.read(header.data_offset)
        all_changes = provenance(list(self.changes), self.source_sha256)
        start = _new_start(header, old, all_changes) if all_changes else old
        before, after = hashlib.sha256(old), hashlib.sha256(start)
        source.seek(header.data_offset)
        target.write(start)
        left = max(header.size - header.data_offset, 0)
        reporter.started(task, left)
        while data := source.read(min(_BLOCK, left)):
            before.update(data)
            after.update(data)
            target.write(data)
            left -= len(data)
            reporter.advanced(task, len(data))
        reporter.finished(task)
        if left or before.hexdigest() != self.source_sha256:
            raise GGUFError(f"`{header.path}` changed while it was being read", hint="Try again")
        return after.hexdigest(), len(start) + header.size - header.data_offset


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Nothing:
    """A file that keeps nothing."""

    def write(self, data: bytes, /) -> None:
        pass


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise GGUFError(
            f"`{path}` cannot be read: {exc.strerror}", hint="Check its permissions"
        ) from exc


def check_place(header: Header, out: Path, *, overwrite: bool) -> Path:
    """Return the path that a copy known as `out` has in truth; it may be written.

    Raises:
        GGUFError: it may not, as it is the source itself, for instance.
        NotEnoughSpace: the disk cannot hold the copy.
    """
    with _translated(header, out):
        place = Path(os.path.realpath(out))  # the file a symlink points to, not the symlink
        _refuse(header, out, place, overwrite=overwrite)
        return place


def _refuse(header: Header, out: Path, place: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise GGUFError(f"`{out}` is a folder", hint="Name the file to write")
    # What is renamed onto a device or a pipe takes its place: /dev/stdout would be gone.
    if out.exists() and not out.is_file():
        raise GGUFError(f"`{out}` is not a regular file", hint="Name the file to write")
    folder = place.parent if out.is_symlink() else out.parent
    if not folder.is_dir():
        raise GGUFError(f"the folder `{folder}` does not exist", hint=f"mkdir -p '{folder}'")
    if out.exists() and out.samefile(header.path):
        raise GGUFError(f"`{out}` is the source itself", hint="Name another file to write")
    if os.path.lexists(out) and not overwrite:
        raise GGUFError(f"`{out}` exists already", hint="Add --force to replace it")
    free = shutil.disk_usage(folder).free
    if header.size > free:
        raise _no_space(out, header.size, free)


def _no_space(out: Path, needed: int, free: int | None = None) -> NotEnoughSpace:
    have = "is full" if free is None else f"has {free:,} free"
    return NotEnoughSpace(
        f"`{out}` needs {needed:,} bytes, the disk {have}",
        hint="Make room, or name a file on another disk",
    )


@contextmanager
def _translated(header: Header, out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(out, header.size) from exc
        raise GGUFError(
            f"`{header.path}` cannot be copied to `{out}`: {exc.strerror}",
            hint="Name a place where files can be written",
        ) from exc


def _new_start(header: Header, old: bytes, changes: list[Change]) -> bytes:
    """Return all that stands before the tensors' data; untouched keys keep place and bytes."""
    values = {change.key: _encoded(change) for change in changes}
    keys = [values.pop(key, old[start:end]) for key, (start, end) in header.spans.items()]
    keys += values.values()
    start = old[: _COUNTS - U64.size] + U64.pack(len(keys)) + b"".join(keys)
    start += old[header.infos_offset : header.infos_end]
    return start + bytes(-len(start) % header.alignment)


def _encoded(change: Change) -> bytes:
    value = change.value
    if isinstance(value, tuple):
        items = b"".join(map(SCALARS[INT32].pack, value))
        return (
            _string(change.key) + U32.pack(ARRAY) + U32.pack(INT32) + U64.pack(len(value)) + items
        )
    if isinstance(value, str):
        kind, data = STRING, _string(value)
    elif isinstance(value, bool):
        kind, data = BOOL, SCALARS[BOOL].pack(value)
    else:
        kind, data = UINT32, SCALARS[UINT32].pack(value)
    return _string(change.key) + U32.pack(kind) + data


def _string(text: str) -> bytes:
    data = text.encode()
    return U64.pack(len(data)) + data
