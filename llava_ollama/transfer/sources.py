"""The files that bytes come from: opening them, and what is said when they are not right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from llava_ollama.errors import ChecksumMismatch, StoreError
from llava_ollama.transfer.interface import Blob


@contextmanager
def opened(blob: Blob) -> Iterator[BinaryIO]:
    """Yield the blob's file, open for reading.

    Raises:
        StoreError: it is not here, or cannot be read.
    """
    try:
        if blob.path is None:
            raise FileNotFoundError(2, "no such file or directory")
        file = blob.path.open("rb", buffering=0)
    except OSError as exc:
        raise StoreError(
            f"`{blob.path or blob.sha256}` cannot be read: "
            f"{(exc.strerror or type(exc).__name__).lower()}",
            hint="Check that it is there and readable",
        ) from exc
    with file:
        yield file


def wrong(blob: Blob) -> ChecksumMismatch:
    """Return the error for a file whose bytes are not the ones that were asked for."""
    return ChecksumMismatch(
        f"`{blob.path}` does not have the bytes of sha256 {blob.sha256[:8]}…",
        hint="Nothing was changed. Run the same command again: it looks at the file anew",
    )


def changed(blob: Blob) -> ChecksumMismatch:
    """Return the error for a file that somebody writes to."""
    return ChecksumMismatch(
        f"`{blob.path}` changed while it was read",
        hint="Wait until it is complete, then run the same command again",
    )
