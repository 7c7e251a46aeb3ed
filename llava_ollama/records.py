"""What must survive a kill: small JSON files in the state folder, each written whole or not at all.

- `pending`: the names that an install makes on a daemon, written down before they are made
- `installed`: which names on which daemon are ours
- `rewritten`: source sha256 → the sha256 that a rewriting daemon (0.30 to 0.34.0) made of it
- `transient`: files that an install downloads only to send them on
- `probe`: a file that asks a daemon whether a folder is its own, for as long as the question takes
- `pulled`: names that a daemon pulls only for their blobs
- `mended`: source sha256 and trained depth → the sha256 of the mended copy
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from llava_ollama.errors import LlavaOllamaError

Kind = Literal["pending", "installed", "rewritten", "transient", "probe", "pulled", "mended"]
_LARGEST = 1 << 16
_OLD = 60.0
"""Bytes of a record, and seconds after which nobody writes one any more."""


class Records:
    """The records below one state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, kind: Kind, *key: str) -> dict[str, str] | None:
        """Return the record, or None where there is none; a damaged one counts as none."""
        return _read(self._path(kind, key))

    def all(self, kind: Kind) -> Iterator[dict[str, str]]:
        """Yield every record of a kind."""
        for path in sorted((self._folder / kind).glob("*.json")):
            if (record := _read(path)) is not None:
                yield record

    def put(self, kind: Kind, *key: str, record: Mapping[str, str]) -> None:
        """Write a record and wait until the disk has it.

        Raises:
            LlavaOllamaError: the state folder cannot be written.
        """
        path = self._path(kind, key)
        # Threads of one process share its id, so that is not enough for a name of one's own.
        fresh = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._clear()
            try:
                with fresh.open("w", encoding="utf-8") as file:
                    json.dump(dict(record), file)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)

    def stored(self, daemon: str, digest: str) -> str:
        """Return what a rewriting daemon made of the file `digest`, where that is known."""
        record = self.get("rewritten", daemon, digest)
        return record.get("stored", digest) if record else digest

    def mended(self) -> dict[str, dict[str, str]]:
        """Return what is known of mended copies, by their sha256."""
        made = (r for r in self.all("mended") if r.keys() >= {"sha256", "source"})
        return {record["sha256"]: record for record in made}

    def drop(self, kind: Kind, *key: str) -> None:
        """Remove a record, if it is there.

        Raises:
            LlavaOllamaError: the state folder cannot be written.
        """
        with self._writing():
            self._path(kind, key).unlink(missing_ok=True)

    def lock_file(self, kind: Kind, *key: str) -> Path:
        """Return the path of the lock that belongs to a record."""
        return self._path(kind, key).with_suffix(".lock")

    def _clear(self) -> None:
        """Remove what killed writers have left, of any record: a probe's is never written again."""
        for other in self._folder.glob("*/*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - other.stat().st_mtime > _OLD:
                    other.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise LlavaOllamaError(
                f"the state folder `{self._folder}` cannot be written: {exc.strerror}",
                hint="Mend its permissions or free space, or set `LLAVA_OLLAMA_STATE` to another",
            ) from exc

    def _path(self, kind: Kind, key: tuple[str, ...]) -> Path:
        # A file's name that is no UTF-8 comes as lone surrogates.
        joined = "\0".join(key).encode(errors="surrogatepass")
        name = hashlib.sha256(joined).hexdigest()[:24]
        return self._folder / kind / f"{name}.json"


def _read(path: Path) -> dict[str, str] | None:
    try:
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        value = json.loads(data) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return {str(key): str(item) for key, item in value.items()}
