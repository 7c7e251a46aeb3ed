"""Files that appear whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_OLD = 60.0
"""Seconds without a write after which a part belongs to a process that was killed."""
_PART = (".llava-ollama-", ".part")


@contextmanager
def replacing(place: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `place` when the block ends, and not when it fails.

    A symbolic link is replaced, not what it points to.
    """
    part = part_of(place)
    try:
        with part.open("xb") as file:
            yield file
            flush(file)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def part_of(place: Path) -> Path:
    """Return a fresh name in the same folder, short whatever the length of the other."""
    # Not `tempfile`: its files are private, and a daemon of another user must read some of these.
    return place.with_name(f"{_PART[0]}{secrets.token_hex(6)}{_PART[1]}")


def flush(file: BinaryIO) -> None:
    """Wait until the disk has all of a file."""
    file.flush()
    os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Remove what killed writers have left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PART[0]) and entry.name.endswith(_PART[1]):
                _remove(entry)


def _remove(entry: os.DirEntry[str]) -> None:
    with suppress(OSError):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD:
            Path(entry.path).unlink()
