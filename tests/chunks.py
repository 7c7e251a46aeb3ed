"""A feed that is a list: jobs in, outcomes out; the runner is tested and measured with it."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from llava_ollama.batch.work import Job, Outcome, Seen


class ChunkFeed:
    """Hands out the jobs of a list, and keeps what becomes of them; see `work.Feed`.

    A question that is put off comes again after its time.
    """

    def __init__(self, jobs: Iterable[Job], *, known: Iterable[tuple[str, Outcome]] = ()) -> None:
        """`known` are earlier answers, each with the sha256 of its picture."""
        self._jobs = {job.item.id: job for job in jobs}
        self._free: deque[int] = deque()
        self._last: deque[int] = deque()
        """Those that were in flight when runs died: one at a time, when there is nothing else."""
        for job in self._jobs.values():
            (self._last if job.is_suspect else self._free).append(job.item.id)
        self._later: list[tuple[float, int]] = []
        self._out: dict[int, set[int]] = {}
        self._answers = {(sha256, outcome.ask): outcome for sha256, outcome in known}
        self.pictures: dict[int, Seen] = {}
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        """By item and ask; the last of each."""

    def take(self, most: int) -> list[Job]:
        """See `Feed.take`."""
        if any(self._jobs[item].is_suspect for item in self._out):
            return []
        while self._later and self._later[0][0] <= time.time():
            self._free.append(heapq.heappop(self._later)[1])
        jobs: list[Job] = []
        for _ in range(len(self._free)):
            item = self._free.popleft()
            if item in self._out or len(jobs) == most:
                self._free.append(item)
            elif job := self._opened(item):
                jobs.append(job)
        if not (jobs or self._free or self._later or self._out) and self._last:
            jobs += filter(None, [self._opened(self._last.popleft())])
        return jobs

    def _opened(self, item: int) -> Job | None:
        """Return the job with the questions that may be put now."""
        job, now = self._jobs[item], time.time()
        left = []
        for question in job.questions:
            known = self.outcomes.get((item, question.id))
            if known is None or (known.retry_at is not None and known.retry_at <= now):
                left.append(replace(question, attempts=known.attempts) if known else question)
        if not left:
            return None
        self._out[item] = {question.id for question in left}
        return replace(job, questions=tuple(left))

    def wait(self) -> float | None:
        """See `Feed.wait`."""
        if self._free or self._last:
            return 0.0
        return max(0.0, self._later[0][0] - time.time()) if self._later else None

    def seen(self, seen: Seen) -> None:
        """See `Feed.seen`."""
        self.pictures[seen.item] = seen

    def answered(self, sha256: str, ask: int) -> Outcome | None:
        """See `Feed.answered`."""
        return self._answers.get((sha256, ask))

    def sending(self, item: int, ask: int) -> None:
        """See `Feed.sending`: nothing here outlives the process."""

    def settle(self, outcome: Outcome) -> None:
        """See `Feed.settle`."""
        self.outcomes[outcome.item, outcome.ask] = outcome
        if outcome.state == "pending":  # taken back: it was of another model
            del self.outcomes[outcome.item, outcome.ask]
            self._answers = {k: v for k, v in self._answers.items() if v.item != outcome.item}
            self._free.append(outcome.item)
            return
        if outcome.state == "done" and outcome.item in self.pictures:
            self._answers.setdefault((self.pictures[outcome.item].sha256, outcome.ask), outcome)
        if outcome.retry_at is not None:
            heapq.heappush(self._later, (outcome.retry_at, outcome.item))
        out = self._out[outcome.item]
        out.discard(outcome.ask)
        if not out:
            del self._out[outcome.item]

    def give_back(self, item: int) -> None:
        """See `Feed.give_back`."""
        if self._out.pop(item, None):
            self._free.append(item)
