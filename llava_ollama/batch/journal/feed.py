"""The journal's side towards a runner: hands out what is unfinished, takes in what became of it.

What is handed out is known here alone, in memory: the run's lock sees to it that no other process
hands it out as well. What is *with a host* is a lease, which outlives this process.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from llava_ollama.batch.asking import is_repeatable
from llava_ollama.batch.journal import changes
from llava_ollama.batch.journal.changes import LARGEST, NO_OFFSET, Entry, as_path
from llava_ollama.batch.journal.config import Asked
from llava_ollama.batch.journal.database import CODE, door, translated
from llava_ollama.batch.journal.filling import Filling
from llava_ollama.batch.journal.leases import Lease
from llava_ollama.batch.work import PREPARATION, SUSPECT, Item, Job, Outcome, Question, Seen

if TYPE_CHECKING:
    from llava_ollama.batch.journal.journal import Journal

_SOON = 0.05
"""Seconds until it is worth asking again while a source is read or a write is on its way."""
_COLUMNS = """a.item, a.ask, a.attempts, a.retry_at, i.path, i.custom_id, i.offset, i.crashes
    FROM answer a JOIN item i ON i.id = a.item WHERE a.state < 2
    AND (SELECT model_digest = ? AND preparation = ? FROM ask WHERE id = a.ask) AND"""
_PAGE = f"SELECT {_COLUMNS} a.item > ? ORDER BY a.item, a.ask"
_ONE = f"SELECT {_COLUMNS} a.item = ? ORDER BY a.ask"
_SAME = """SELECT a.item, a.ask, a.text, a.finish, h.url, a.copied_from
    FROM (SELECT id FROM item WHERE sha256 = ? LIMIT 64) i JOIN answer a ON a.item = i.id
    LEFT JOIN host h ON h.id = a.host WHERE a.ask = ? AND a.state = ? LIMIT 1"""


class JournalFeed:
    """A `work.Feed` over a journal, and over a source that is read meanwhile, if there is one."""

    def __init__(
        self,
        journal: Journal,
        *,
        limit: int | None = None,
        sample: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Hand out at most `limit` pictures, or `sample` drawn from all that are unfinished."""
        self._journal = journal
        self._own = (journal.config.model_digest, PREPARATION)
        """What a question must be of: one that another model has begun with waits for that one."""
        self._db = journal.connect()
        self._view = journal.reading()
        self._asked = lru_cache(1024)(self._view.asked)
        self._clock = clock
        self._left = limit
        self._sample = None if sample is None else min(sample, LARGEST)
        self._lock = threading.Lock()
        self._after = 0
        """The last item whose page was read; those of sources still read come after it."""
        self._out: dict[int, set[int]] = {}
        """Items that are handed out, with their questions that are not settled."""
        self._again: list[tuple[float, int]] = []
        """Items that were handed out before, by the time from which on they may be again."""
        self._writing: Counter[int] = Counter()
        """Items with changes that the disk does not have: what it says of them is old."""
        self._suspects: deque[int] = deque()
        self._alone: int | None = None
        self._shas: dict[int, str] = {}
        self._fresh: dict[tuple[str, int], Outcome] = {}
        self._leases: dict[tuple[int, int], Lease] = {}
        self._source: Filling | None = None
        journal.reopened = self._reopened

    def fill(self, entries: Iterable[Entry]) -> None:
        """Begin to read a source, in a thread of its own that ends when the source does."""
        self._source = Filling(self._journal, entries)

    def take(self, most: int) -> list[Job]:
        """Return up to `most` jobs, as `Feed.take` does.

        Raises:
            LlavaOllamaError: the journal cannot be written, or the source cannot be read.
        """
        self._journal.writer.check()
        if self._source is not None:
            self._source.check()
        with self._lock, door(self._journal.path):
            if self._alone in self._out:
                return []
            wanted = most if self._left is None else min(most, self._left)
            jobs = list(self._due(wanted))
            if len(jobs) < wanted:
                further = self._page if self._sample is None else self._drawn
                jobs += further(wanted - len(jobs))
            if not jobs and wanted:
                jobs = self._suspect()
            if self._left is not None:
                self._left -= len(jobs)
        return jobs

    def wait(self) -> float | None:
        """Return the seconds until there may be more, as `Feed.wait` does."""
        with self._lock:
            if self._left == 0 and not self._out:
                return None
            if self.reading or self._writing or self._out:
                return _SOON
            if self._again:
                return max(0.0, self._again[0][0] - self._clock())
            if self._suspects or self._sample:
                return 0.0
            if self._sample is not None:
                return None  # all that was drawn is settled; the others are for another time
            with door(self._journal.path):
                more = self._db.execute(f"{_PAGE} LIMIT 1", (*self._own, self._after)).fetchone()
            return None if more is None else 0.0

    def seen(self, seen: Seen) -> None:
        """Note what reading a picture found."""
        with self._lock:
            self._shas[seen.item] = seen.sha256
            self._writing[seen.item] += 1
        replaced: list[bool] = []

        def written() -> None:
            if seen.thumbnail is not None:
                self._journal.thumbnails.put(seen.sha256, seen.thumbnail)
            self._written(seen.item)
            if replaced[0]:
                self._reopened(seen.item)

        self._journal.write(lambda db: replaced.append(changes.put_seen(db, seen)), written)

    def answered(self, sha256: str, ask: int) -> Outcome | None:
        """Return what an equal picture was answered, where temperature 0 makes that the answer."""
        if not is_repeatable(self._asked(ask).ask):
            return None
        with self._lock:
            fresh = self._fresh.get((sha256, ask))
        if fresh is not None:
            return fresh.copy(fresh.item, ask)
        with door(self._journal.path):
            row = self._db.execute(_SAME, (bytes.fromhex(sha256), ask, CODE["done"])).fetchone()
        if row is None:
            return None
        item, ask, text, finish, host, copied_from = row
        known = Outcome(item, ask, "done", text, finish or None, host=host or "")
        return replace(known, copied_from=copied_from).copy(item, ask)

    def sending(self, item: int, ask: int) -> None:
        """Note that a host is about to be handed this; it counts as in flight until settled."""
        self._end(self._leases.pop((item, ask), None))
        try:
            self._leases[item, ask] = self._journal.leases.begin(item, ask)
        except OSError as exc:
            raise translated(exc, self._journal.path) from exc
        # So that the writer has the disk take it soon; it is no row of its own.
        self._journal.writer.put(lambda _: None, rows=0)

    def settle(self, outcome: Outcome) -> None:
        """Note what became of a question."""
        key = (outcome.item, outcome.ask)
        lease = self._leases.pop(key, None)
        with self._lock:
            self._writing[outcome.item] += 1
            sha256 = self._shas.get(outcome.item)
            if sha256 is not None and outcome.state == "done":
                self._fresh[sha256, outcome.ask] = outcome
            self._out.get(outcome.item, set()).discard(outcome.ask)
            if not self._out.get(outcome.item, True):
                del self._out[outcome.item]
                self._shas.pop(outcome.item, None)
            if outcome.state in {"retry", "pending"}:
                heapq.heappush(self._again, (outcome.retry_at or 0.0, outcome.item))

        def written() -> None:
            self._end(lease)
            with self._lock:
                if sha256 is not None:
                    self._fresh.pop((sha256, outcome.ask), None)
            self._written(outcome.item)

        self._journal.write(partial(changes.settle, outcome=outcome, lease=lease), written)

    def give_back(self, item: int) -> None:
        """Return a job unasked: it is pending again, without an attempt more."""
        for key in [key for key in self._leases if key[0] == item]:
            self._end(self._leases.pop(key))
        with self._lock:
            if self._out.pop(item, None) is None:
                return
            self._shas.pop(item, None)
            if self._left is not None:
                self._left += 1
            heapq.heappush(self._again, (0.0, item))

    def close(self) -> None:
        """Stop reading the source, and let go of the file."""
        if self._source is not None:
            self._source.stop()
        self._view.close()
        self._db.close()

    def _end(self, lease: Lease | None) -> None:
        if lease is not None:
            self._journal.leases.end(lease)

    def _written(self, item: int) -> None:
        """Called in the writer's thread: the disk has one more change of this item."""
        with self._lock:
            self._writing[item] -= 1
            if not self._writing[item]:
                del self._writing[item]

    def _reopened(self, item: int) -> None:
        """Called in the writer's thread: this item has something to be asked again."""
        with self._lock:
            heapq.heappush(self._again, (0.0, item))

    @property
    def reading(self) -> bool:
        """Whether a source is still read."""
        return self._source is not None and self._source.is_alive

    def _due(self, most: int) -> Iterator[Job]:
        """Yield what was handed out before and may be again; what is still busy stays."""
        busy: list[tuple[float, int]] = []
        while self._again and most > 0 and self._again[0][0] <= self._clock():
            entry = heapq.heappop(self._again)
            if entry[1] in self._out or entry[1] in self._writing:
                busy.append(entry)
            elif job := self._job(self._db.execute(_ONE, (*self._own, entry[1])).fetchall()):
                most -= 1
                yield job
        for entry in busy:
            heapq.heappush(self._again, entry)

    def _page(self, most: int) -> list[Job]:
        """Return the next jobs in the order in which pictures were found."""
        jobs: list[Job] = []
        cursor = self._db.execute(_PAGE, (*self._own, self._after))
        for item, rows in groupby(cursor, key=itemgetter(0)):
            self._after = item
            # What was handed out, and again before its page was read, is looked after there.
            job = None if item in self._out or item in self._writing else self._job(list(rows))
            if job is not None:
                jobs.append(job)
            if len(jobs) >= most:
                break
        cursor.close()
        return jobs

    def _job(self, rows: list[Any]) -> Job | None:
        """Return the questions that may be put now as a job, and note when the others may be."""
        if not rows:
            return None
        now = self._clock()
        later = [row[3] for row in rows if row[3] is not None and row[3] > now]
        if later:
            heapq.heappush(self._again, (min(later), rows[0][0]))
        ready = [row for row in rows if row[3] is None or row[3] <= now]
        if not ready:
            return None
        if ready[0][-1] >= SUSPECT and self._alone != ready[0][0]:
            self._suspects.append(ready[0][0])
            return None
        job = _job(ready, self._asked)
        self._out[job.item.id] = {question.id for question in job.questions}
        return job

    def _suspect(self) -> list[Job]:
        """Return one suspect, once nothing else is left or under way."""
        if self.reading or self._again or self._out or self._writing or not self._suspects:
            return []
        self._alone = self._suspects.popleft()
        job = self._job(self._db.execute(_ONE, (*self._own, self._alone)).fetchall())
        return [] if job is None else [job]

    def _drawn(self, most: int) -> list[Job]:
        """Return jobs drawn from all that are unfinished, once they are all known."""
        if self.reading or not self._sample:
            return []
        drawn = self._db.execute(
            "SELECT item FROM (SELECT DISTINCT item FROM answer a WHERE state < 2 AND"
            " (SELECT model_digest = ? AND preparation = ? FROM ask WHERE id = a.ask))"
            " ORDER BY random() LIMIT ?",
            (*self._own, self._sample),
        ).fetchall()
        self._sample = 0
        for (item,) in drawn:
            heapq.heappush(self._again, (0.0, item))
        return list(self._due(most))


def _job(rows: list[Any], asked: Callable[[int], Asked]) -> Job:
    item, _, _, _, path, custom_id, offset, crashes = rows[0]
    where = None if offset == NO_OFFSET else offset
    questions = tuple(Question(row[1], asked(row[1]).ask, row[2]) for row in rows)
    return Job(Item(item, as_path(path), as_path(custom_id), where), questions, crashes)
