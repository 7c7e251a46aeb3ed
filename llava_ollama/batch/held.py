"""The jobs that a runner has at present, and which of them a host may be handed next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from llava_ollama.batch.asking import is_repeatable
from llava_ollama.batch.hosts import Host
from llava_ollama.batch.pictures import Ready
from llava_ollama.batch.work import Job, Outcome, Question

_LOSSES = 2
"""Connections that broke off under a job, after which it is held for a killer of hosts."""


@dataclass
class Held:
    """A job of which the picture is prepared, and what has happened to it."""

    job: Job
    ready: Ready
    left: deque[Question]
    """The questions that are not settled yet."""
    settled: dict[int, Outcome] = field(default_factory=dict)
    losses: int = 0
    crashed: list[str] = field(default_factory=list)
    """The hosts whose runner died of it, or of what was asked beside it."""
    where: Host | None = None
    """The only host that it is for, unless that is away."""
    twins: list[Held] = field(default_factory=list)
    """Jobs with an equal picture, which wait for this one's answers."""

    @property
    def is_suspect(self) -> bool:
        """Whether it is asked alone."""
        return bool(self.crashed) or self.losses >= _LOSSES

    @property
    def sha256(self) -> str:
        """The picture's."""
        return self.ready.seen.sha256

    @property
    def is_repeatable(self) -> bool:
        """Whether an equal picture may wait for this one's answers."""
        return all(is_repeatable(question.ask) for question in self.job.questions)


class Rack:
    """Prepared jobs in the order in which they are handed out; suspects come before all others.

    Of equal pictures one is here; the others wait for its answers.
    """

    def __init__(self) -> None:
        self._ready: deque[Held] = deque()
        self._suspects: deque[Held] = deque()
        self._first: dict[str, Held] = {}
        self.waiting = 0
        """Jobs that wait for an equal picture's answers."""

    def add(self, held: Held) -> None:
        """Take in a job; one whose picture is already here waits for that."""
        first = self._first.setdefault(held.sha256, held) if held.is_repeatable else held
        if first is held:
            self._ready.append(held)
            return
        held.ready = replace(held.ready, picture=first.ready.picture)  # its own pixels are freed
        first.twins.append(held)
        self.waiting += 1

    def back(self, held: Held) -> None:
        """Take a job back that could not be asked, to be the next that is."""
        (self._suspects if held.is_suspect else self._ready).appendleft(held)

    def done_with(self, held: Held) -> list[Held]:
        """Forget a job; return those that waited for it."""
        if self._first.get(held.sha256) is held:
            del self._first[held.sha256]
        self.waiting -= len(held.twins)
        return held.twins

    def pick(self, host: Host) -> Held | None:
        """Return what `host`, which is free, is to be asked next, if anything is to be now.

        A suspect waits until the host has nothing else to do, and nothing else is begun there.
        """
        for held in self._suspects:
            if held.where is None or held.where is host or held.where.is_away:
                if host.asked:
                    return None
                self._suspects.remove(held)
                host.lone = True
                return held
        return self._ready.popleft() if self._ready else None
