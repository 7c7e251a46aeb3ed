"""Quarantine: where blobs with wrong bytes go, inside the models folder.

A rename, never a deletion: the bytes may be all that is left of somebody's model. The daemon looks
at `blobs/` and `manifests/` only, so what is here neither counts nor is pruned.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_ollama.store import Store

FOLDER = "quarantine"


@contextmanager
def aside(store: Store, sha256: str) -> Iterator[Path]:
    """Move a blob into the quarantine; unless it has been replaced at the end, move it back.

    Raises:
        StoreError: the models folder cannot be written; then the blob is where it was.
    """
    place = store.folder / FOLDER / f"sha256-{sha256}.{time.time_ns()}"
    with store.writing():
        place.parent.mkdir(exist_ok=True)
        if os.geteuid() != store.uid:
            os.chown(place.parent, store.uid, store.gid)
        store.blob(sha256).rename(place)
    try:
        with store.writing():
            _sync(store, place.parent)
        yield place
    finally:
        with store.writing():
            if not store.blob(sha256).exists():
                place.rename(store.blob(sha256))
                _sync(store, place.parent)


def contents(store: Store) -> list[tuple[Path, int]]:
    """Return what is in quarantine, with sizes in bytes.

    Raises:
        StoreError: the folder cannot be read.
    """
    folder = store.folder / FOLDER
    with store.reading():
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [(path, path.lstat().st_size) for path in found]


def _sync(store: Store, folder: Path) -> None:
    """Wait until the disk has both names: in between, a crash could lose the one file there is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    store.sync()
