"""A feed that is a list: jobs in, outcomes out; for an actor of a cluster, and for scripts."""

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
        self._free: deque[int] = deque(self._jobs)
        self._later: list[tuple[float, int, int]] = []
        self._answers = {(sha256, outcome.ask): outcome for sha256, outcome in known}
        self.pictures: dict[int, Seen] = {}
        self.outcomes: dict[tuple[int, int], Outcome] = {}
        """By item and ask; the last of each."""
        self.sent: list[tuple[int, int]] = []

    def take(self, most: int) -> list[Job]:
        """See `Feed.take`."""
        jobs: list[Job] = []
        while self._free and len(jobs) < most:
            if (job := self._open(self._free.popleft())) is not None:
                jobs.append(job)
        while self._later and self._later[0][0] <= time.time() and len(jobs) < most:
            _, item, ask = heapq.heappop(self._later)
            jobs.append(self._again(item, ask))
        return jobs

    def _open(self, item: int) -> Job | None:
        """Return the job with the questions that are not settled."""
        job = self._jobs[item]
        left = tuple(q for q in job.questions if (item, q.id) not in self.outcomes)
        return replace(job, questions=left) if left else None

    def _again(self, item: int, ask: int) -> Job:
        job = self._jobs[item]
        attempts = self.outcomes.pop((item, ask)).attempts
        questions = tuple(replace(q, attempts=attempts) for q in job.questions if q.id == ask)
        return replace(job, questions=questions)

    def wait(self) -> float | None:
        """See `Feed.wait`."""
        if self._free:
            return 0.0
        return max(0.0, self._later[0][0] - time.time()) if self._later else None

    def seen(self, seen: Seen) -> None:
        """See `Feed.seen`."""
        self.pictures[seen.item] = seen

    def answered(self, sha256: str, ask: int) -> Outcome | None:
        """See `Feed.answered`."""
        return self._answers.get((sha256, ask))

    def sending(self, item: int, ask: int) -> None:
        """See `Feed.sending`."""
        self.sent.append((item, ask))

    def settle(self, outcome: Outcome) -> None:
        """See `Feed.settle`."""
        self.outcomes[outcome.item, outcome.ask] = outcome
        if outcome.state == "done" and outcome.item in self.pictures:
            self._answers.setdefault((self.pictures[outcome.item].sha256, outcome.ask), outcome)
        if outcome.retry_at is not None:
            heapq.heappush(self._later, (outcome.retry_at, outcome.item, outcome.ask))

    def give_back(self, item: int) -> None:
        """See `Feed.give_back`."""
        self._free.append(item)
