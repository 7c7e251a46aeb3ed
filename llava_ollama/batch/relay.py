"""What goes between a driver and a node: jobs one way, and word of what becomes of them back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from llava_ollama.batch.events import HostChanged, HostLevel, Warned
from llava_ollama.batch.work import Job, Outcome, Seen

_GATHER = 0.02
"""Seconds in which notes are put together: one more message costs Ray about a millisecond."""
_IDLE = 0.05
"""Seconds after which a runner that has nothing looks for more."""
_KNOWN = 10_000
"""Answers that are kept for equal pictures."""


@dataclass(frozen=True)
class Sending:
    """A host is handed this."""

    item: int
    ask: int


@dataclass(frozen=True)
class Back:
    """A job comes back unasked."""

    item: int


Note = Sending | Seen | Outcome | Back | HostLevel | HostChanged | Warned


class Relay:
    """A `work.Feed` for the runner on a node, filled and listened to by other threads.

    An equal picture has the answer that this node gave, if it is not long ago: all of them are in
    the driver's journal, but no feed waits for a network.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._shas: dict[int, str] = {}
        self._known: dict[tuple[str, int], Outcome] = {}
        self._notes: SimpleQueue[Note | BaseException | None] = SimpleQueue()

    def give(self, jobs: Iterable[Job]) -> None:
        """Add work."""
        with self._lock:
            self._jobs.extend(jobs)

    def tell(self, note: Note) -> None:
        """Pass a note on."""
        self._notes.put(note)

    def end(self, error: BaseException | None = None) -> None:
        """End `notes`, with what ended the runner."""
        for job in self._rest():
            self.give_back(job.item.id)
        self._notes.put(error)

    def notes(self) -> Iterator[list[Note]]:
        """Yield what there is to tell, as it comes; ends when the runner has.

        Raises:
            LlavaOllamaError: what ended the runner.
        """
        while True:
            gathered: list[Note] = []
            note = self._notes.get()
            until = time.monotonic() + _GATHER
            while note is not None and not isinstance(note, BaseException):
                gathered.append(note)
                try:
                    note = self._notes.get(timeout=max(0.0, until - time.monotonic()))
                except Empty:
                    break
            else:
                yield gathered
                if note is not None:
                    raise note
                return
            yield gathered

    def take(self, most: int) -> list[Job]:
        """See `Feed.take`."""
        with self._lock:
            return [self._jobs.popleft() for _ in range(min(most, len(self._jobs)))]

    def wait(self) -> float | None:
        """See `Feed.wait`."""
        with self._lock:
            return 0.0 if self._jobs else _IDLE

    def seen(self, seen: Seen) -> None:
        """See `Feed.seen`."""
        self._shas[seen.item] = seen.sha256
        self.tell(seen)

    def answered(self, sha256: str, ask: int) -> Outcome | None:
        """See `Feed.answered`."""
        return self._known.get((sha256, ask))

    def sending(self, item: int, ask: int) -> None:
        """See `Feed.sending`."""
        self.tell(Sending(item, ask))

    def settle(self, outcome: Outcome) -> None:
        """See `Feed.settle`."""
        sha256 = self._shas.get(outcome.item)
        if sha256 and outcome.state == "done" and outcome.copied_from is None:
            self._known[sha256, outcome.ask] = outcome
            self._forget()
        self.tell(outcome)

    def _forget(self) -> None:
        """Keep the last answers only."""
        if len(self._known) > _KNOWN:
            self._known.pop(next(iter(self._known)))
        while len(self._shas) > _KNOWN:
            self._shas.pop(next(iter(self._shas)))

    def give_back(self, item: int) -> None:
        """See `Feed.give_back`."""
        self.tell(Back(item))

    def _rest(self) -> list[Job]:
        with self._lock:
            rest = list(self._jobs)
            self._jobs.clear()
        return rest
