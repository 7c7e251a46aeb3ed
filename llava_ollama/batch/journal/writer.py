"""The one thread that writes: what is queued goes to the disk in groups.

A group is committed when it has 64 rows or its first row is 100 ms old, whichever comes first, so
that a fast server does not wait for the disk and a slow one loses no answer that is older. What
has come while the disk was busy goes along with the next group: it is no safer by waiting.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llava_ollama.batch.journal.database import translated
from llava_ollama.errors import LlavaOllamaError

if TYPE_CHECKING:
    import sqlite3

ROWS = 64
_MOST = 1024
SECONDS = 0.1
Work: TypeAlias = "Callable[[sqlite3.Connection], object]"


@dataclass(frozen=True)
class _Write:
    work: Work | None
    """None ends the thread."""
    rows: int
    committed: Callable[[], None] | None
    at_once: bool = False


class Writer:
    """Runs what it is given on its own connection, in order, and groups the commits."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, sync: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._path = path
        self._sync = sync
        self._queue: queue.SimpleQueue[_Write] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def put(
        self, work: Work, *, rows: int = 1, committed: Callable[[], None] | None = None
    ) -> None:
        """Queue `work`; `committed` is called, in the writer's thread, once the disk has it.

        Raises:
            LlavaOllamaError: an earlier write failed, and nothing since then was written; or it is
                closed.
        """
        self.check()
        if self._closed:
            raise LlavaOllamaError(f"the journal `{self._path}` is closed")
        self._queue.put(_Write(work, rows, committed))

    def flush(self) -> None:
        """Wait until the disk has all that was queued before.

        Raises:
            LlavaOllamaError: a write failed.
        """
        reached = threading.Event()
        self._queue.put(_Write(lambda _: None, 0, reached.set, at_once=True))
        while not reached.wait(SECONDS):
            self.check()
            if not self._thread.is_alive():
                break
        self.check()

    def check(self) -> None:
        """Raise what made a write fail, if one did.

        Raises:
            LlavaOllamaError: a write failed.
        """
        if self._failure is not None:
            raise translated(self._failure, self._path) from self._failure

    def close(self) -> None:
        """Write what is queued and end the thread."""
        self._closed = True
        self._queue.put(_Write(None, 0, None, at_once=True))
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            group = self._group()
            going = group[-1].work is not None
            try:
                self._commit(group)
            except BaseException as exc:  # noqa: BLE001 - it is told to those that wait
                self._failure = exc
                return

    def _group(self) -> list[_Write]:
        """Wait for a first write and return it with those that come before the group is full."""
        group = [self._queue.get()]
        rows, until = group[0].rows, time.monotonic() + SECONDS
        while rows < ROWS and not group[-1].at_once:
            try:
                group.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
            rows += group[-1].rows
        while rows < _MOST and not group[-1].at_once and not self._queue.empty():
            group.append(self._queue.get())
            rows += group[-1].rows
        return group

    def _commit(self, group: list[_Write]) -> None:
        works = [write.work for write in group if write.work is not None]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for work in works:
                work(self._connection)
            self._sync()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        for write in group:
            if write.committed is not None:
                write.committed()
