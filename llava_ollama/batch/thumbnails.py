"""The small pictures of a run: made while it runs, from what the model sees, for the gallery.

They stand in a file of their own in the run's folder, by the sha256 of the pictures that they are
of. They can be made again: what cannot be stored costs a gallery time and a run nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llava_ollama.images.small import thumbnail

if TYPE_CHECKING:
    import sqlite3

__all__ = ["THUMBNAILS", "Thumbnails", "thumbnail"]

THUMBNAILS = "thumbnails.sqlite3"
"""Its name in the run's folder."""
_GROUP = 64
"""How many are written at once: a commit for each takes ten times as long."""
_BUSY_SECONDS = 10.0
_TABLE = "CREATE TABLE IF NOT EXISTS thumbnail (sha256 BLOB PRIMARY KEY, jpeg BLOB) WITHOUT ROWID"


class Thumbnails:
    """The small pictures in a run's folder; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / THUMBNAILS
        self._lock = threading.Lock()
        self._waiting: dict[str, bytes] = {}
        self._db: sqlite3.Connection | None = None
        self.usable = True
        """Whether the file can be used; once it cannot, nothing is stored and nothing found."""

    def put(self, sha256: str, jpeg: bytes) -> None:
        """Keep the small picture of the picture with this sha256 (hex digits)."""
        with self._lock:
            self._waiting[sha256] = jpeg
            if len(self._waiting) >= _GROUP:
                self._flush()

    def get(self, sha256: str) -> bytes | None:
        """Return the small picture, or None where there is none."""
        with self._lock:
            if sha256 in self._waiting:
                return self._waiting[sha256]
            if self._db is None and not self._path.exists():
                return None  # asking makes no file
            question = "SELECT jpeg FROM thumbnail WHERE sha256=?"
            found = self._do(lambda db: db.execute(question, (bytes.fromhex(sha256),)).fetchone())
            return bytes(found[0]) if found else None

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Write what waits, and close the file."""
        with self._lock:
            self._flush()
            if self._db is not None:
                self._db.close()
                self._db = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        rows = [(bytes.fromhex(sha256), jpeg) for sha256, jpeg in self._waiting.items()]
        self._waiting = {}

        def write(db: sqlite3.Connection) -> None:
            with db:
                db.execute("BEGIN")
                db.executemany("INSERT OR REPLACE INTO thumbnail VALUES (?, ?)", rows)

        if rows:
            self._do(write)

    def _do(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Do something with the open file; a full disk or a damaged file ends its use."""
        import sqlite3

        if not self.usable:
            return None
        try:
            self._db = self._db or self._opened()
            return work(self._db)
        except (sqlite3.Error, OSError):
            self.usable = False
        return None

    def _opened(self) -> sqlite3.Connection:
        import sqlite3

        db = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_TABLE)
        except sqlite3.Error:
            db.close()
            raise
        return db
