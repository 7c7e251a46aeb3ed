"""Takes what sources find into the journal, many at a time, and sees what has changed."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from llava_ollama.batch.journal import changes
from llava_ollama.batch.journal.changes import Entry
from llava_ollama.batch.journal.database import CODE, door
from llava_ollama.batch.work import Item
from llava_ollama.errors import ImageError

if TYPE_CHECKING:
    from llava_ollama.batch.journal.journal import Journal

_BATCH = 512
_AHEAD = 8
"""Entries a write, and writes that a source may be ahead of the disk."""
_FIND = """SELECT id, size, mtime_ns, sha256,
    (SELECT count(*) FROM answer WHERE item = id AND state = ?)
    FROM item WHERE path = ? AND custom_id = ? AND offset = ?"""


class Intake:
    """One source's way into a journal, used by one thread; a context manager."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._db = journal.connect()
        self._new: list[Entry] = []
        self._room = threading.BoundedSemaphore(_AHEAD)
        self._asks = [one.id for one in journal.asks]

    def put(self, entry: Entry) -> None:
        """Take one thing that a source found.

        Raises:
            LlavaOllamaError: a write failed.
        """
        with door(self._journal.path):
            row = self._db.execute(_FIND, (CODE["gone"], *entry.key)).fetchone()
        if row is None or entry.asks:
            self._new.append(entry)
            if len(self._new) >= _BATCH:
                self._write()
        if row is None or entry.state != "pending":
            return
        item, size, mtime_ns, digest, gone = row
        if gone:
            self._journal.reopen(partial(changes.came_back, item=item), item)
        known = entry.size, changes.as_integer(entry.mtime_ns)
        if digest and known not in {(size, mtime_ns), (None, None)}:
            self._changed(entry, item, digest)

    def _changed(self, entry: Entry, item: int, digest: bytes) -> None:
        """Compare the bytes; a file that cannot be read is the runner's to tell."""
        from llava_ollama.batch.requests import read_source

        with suppress(ImageError):
            data = read_source(Item(item, entry.path, entry.custom_id, entry.offset))
            if sha256(data).digest() == digest:
                stat = partial(changes.put_stat, size=entry.size, mtime_ns=entry.mtime_ns)
                self._journal.write(partial(stat, item=item))
                return
        self._journal.reopen(partial(changes.ask_again, item=item), item)

    def _write(self) -> None:
        entries, self._new = self._new, []
        while not self._room.acquire(timeout=1.0):
            self._journal.writer.check()
        digest = self._journal.config.model_digest
        work = partial(changes.add_items, entries=entries, asks=self._asks, digest=digest)
        self._journal.writer.put(work, rows=len(entries), committed=self._room.release)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            if kind is None:
                if self._new:
                    self._write()
                self._journal.flush()
        finally:
            self._db.close()
