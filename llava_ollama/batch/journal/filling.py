"""Reads a source into a journal, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import takewhile
from typing import TYPE_CHECKING

from llava_ollama.batch.journal.changes import Entry
from llava_ollama.errors import LlavaOllamaError

if TYPE_CHECKING:
    from llava_ollama.batch.journal.journal import Journal

_PATIENCE = 1.0
"""Seconds in which a source that is told to stop should have done so."""


class Filling:
    """A thread that ends when its source does, or is told to stop."""

    def __init__(self, journal: Journal, entries: Iterable[Entry]) -> None:
        self._journal = journal
        self._entries = entries
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="source", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether there may be more; what was found before is in the journal when there is not."""
        return self._thread.is_alive()

    def check(self) -> None:
        """Raise what ended the source before its time.

        Raises:
            LlavaOllamaError: the journal cannot be written, or the source cannot be read.
        """
        failure = self._failure
        if isinstance(failure, LlavaOllamaError):
            raise failure
        if failure is not None:
            raise LlavaOllamaError(
                f"the pictures cannot be listed: {getattr(failure, 'strerror', None) or failure}",
                hint="Run the same command again: it goes on where it stopped",
            ) from failure

    def stop(self) -> None:
        """Have the source end; one that waits for another program's next line is left behind."""
        self._stopping.set()
        self._thread.join(_PATIENCE)

    def _read(self) -> None:
        try:
            self._journal.add(takewhile(lambda _: not self._stopping.is_set(), self._entries))
        except BaseException as exc:  # noqa: BLE001 - a source may not end unnoticed
            self._failure = exc
