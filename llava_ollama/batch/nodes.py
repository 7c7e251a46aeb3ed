"""What a driver knows of one node: which pictures it has, how fast it is, what to think of a loss.

Values without Ray and without a clock, so that they can be read and tested by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from llava_ollama.batch.events import HostLevel, HostState
from llava_ollama.batch.tally import Tally
from llava_ollama.batch.work import Job, Outcome

_AHEAD = 5.0
"""Seconds of work that a node has at hand, so that it never waits for the driver; the end of a run
takes as long where one node is slow."""
_FEWEST, _MOST = 8, 128
_BLIND = 3
"""Pictures in a row that are gone for a node and here for the driver: it lacks their folder."""


@dataclass
class Out:
    """A job that a node has."""

    job: Job
    left: set[int]
    """Its questions that are not settled."""
    sent: set[int] = field(default_factory=set)
    """Those that a host has."""

    is_alone: bool = False
    """Whether nothing else is given to the node meanwhile: a process died when it had this."""

    def rest(self) -> Job:
        """Return what is still to be asked."""
        questions = tuple(q for q in self.job.questions if q.id in self.left)
        return replace(self.job, questions=questions)


@dataclass
class Node:
    """One node of a cluster, by Ray's id; its name is its address."""

    id: str
    name: str
    tally: Tally
    out: dict[int, Out] = field(default_factory=dict)
    host: str = ""
    """What the journal calls who answers there."""
    level: HostLevel | None = None
    """How its host does, as it said last."""
    blind: int = 0

    @property
    def is_blind(self) -> bool:
        """Whether it sees none of the pictures that are there."""
        return self.blind >= _BLIND

    def room(self, now: float) -> int:
        """Return how many jobs more it is given now; none before half of what it has is done."""
        if any(out.is_alone for out in self.out.values()):
            return 0
        asked = 2 * self.level.level if self.level else 0
        wanted = max(_FEWEST + asked, min(_MOST, int(self.tally.rate(now) * _AHEAD)))
        return wanted - len(self.out) if len(self.out) <= wanted // 2 else 0

    def hand(self, jobs: Iterable[Job], *, alone: bool = False) -> None:
        """Note what it is given."""
        for job in jobs:
            left = {question.id for question in job.questions}
            self.out[job.item.id] = Out(job, left, is_alone=alone)

    def sending(self, item: int, ask: int) -> None:
        """Note that its host has this."""
        if item in self.out:
            self.out[item].sent.add(ask)

    def settled(self, outcome: Outcome, now: float) -> None:
        """Note that a question is off its hands."""
        self.tally.count(outcome, now)
        out = self.out.get(outcome.item)
        if out is not None:
            out.left.discard(outcome.ask)
            out.sent.discard(outcome.ask)
            if not out.left:
                del self.out[outcome.item]

    def with_host(self) -> list[Out]:
        """Return what its host has at this moment, as far as it is known here."""
        return [out for out in self.out.values() if out.sent]

    def told(self, state: HostState) -> HostLevel:
        """Return how it does, for whoever watches."""
        level = self.level.level if self.level else 1
        asked = sum(len(out.sent) for out in self.out.values())
        return HostLevel(self.host or self.name, state, level, asked, self.tally.totals.done)
