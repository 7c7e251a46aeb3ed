"""Hashing files with progress: whole ones, and one that is being written."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from llava_ollama.weights.hub_errors import Broken

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

    from llava_ollama.progress import Reporter

_BLOCK = 1 << 20
_LOOK = 1 << 30
"""Bytes after which a file without a limit looks whether there is room for more."""


def hash_file(path: Path, reporter: Reporter) -> tuple[str, int]:
    """Return the sha256 (hex digits) and the size in bytes of the file at `path`.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = _read(file, digest, f"check {path.name}", reporter)
    return digest.hexdigest(), size


class HashedFile:
    """A file that grows at its end and is hashed as it does: all that http_get needs of a file.

    Bytes that an earlier process left in it are read once, then count as written.
    """

    def __init__(self, path: Path, name: str, *, task: str, reporter: Reporter) -> None:
        self.path = path
        self._name = name
        self.limit: int | None = None
        """The size that the file must not exceed, in bytes."""
        self.check_room: Callable[[], None] = lambda: None
        """Called now and then where there is no limit; raises where the disk is nearly full."""
        self._looked = -_LOOK
        self._task = task
        self._reporter = reporter
        self._hash = hashlib.sha256()
        # Unbuffered, so that nothing is left to be written, and to fail, when the file is closed.
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        self.position = 0
        if path.stat().st_size:
            self.position = _read(self._file, self._hash, f"check {name}", reporter)
            reporter.restarted(task, self.position)

    @property
    def sha256(self) -> str:
        """The digest of everything written so far, in hex digits."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Append `data`; beyond `limit` this is not the file that was meant, so all is dropped."""
        if self.limit is not None and self.position + len(data) > self.limit:
            self.clear()
            raise Broken(f"more than the {self.limit} bytes of `{self._name}` arrived")
        if self.limit is None and self.position >= self._looked + _LOOK:
            self._looked = self.position
            self.check_room()
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.position += len(data)
        self._reporter.advanced(self._task, len(data))
        return len(data)

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.position

    def seek(self, offset: int) -> int:
        """Go back to 0, the only place beside the end where the hash is known; all is dropped."""
        if offset != 0:
            raise ValueError(offset)
        self.clear()
        return 0

    def truncate(self) -> int:
        """Drop what stands behind the position, where there never is anything."""
        return self.position

    def clear(self) -> None:
        """Drop all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.position, self._looked = 0, -_LOOK
        self._reporter.restarted(self._task, 0)

    def close(self, *, sync: bool = False) -> None:
        """Close the file; with `sync`, not before the disk has it."""
        if sync:
            os.fsync(self._file.fileno())
        self._file.close()


def _read(file: FileIO, digest: hashlib._Hash, task: str, reporter: Reporter) -> int:
    reporter.started(task, os.fstat(file.fileno()).st_size)
    size = 0
    # One buffer for all: of two threads that take new memory for each block, both wait for it.
    block = memoryview(bytearray(_BLOCK))
    try:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
            reporter.advanced(task, count)
    finally:
        reporter.finished(task)
    return size
