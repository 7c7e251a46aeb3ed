"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llava_ollama.batch.work import Outcome

HostState = Literal["waiting", "up", "trying", "down", "left out"]
"""Not met yet, answering, to be tried with one request, not answering, and not of this run."""


@dataclass(frozen=True)
class HostLevel:
    """How one host does."""

    name: str
    state: HostState
    level: int
    """Requests that it may have at once."""
    asked: int
    """Requests that it has at present."""
    answers: int
    """That it has given in this run."""
    tokens_per_s: float = 0.0
    """At its best level; 0 before there is a measurement."""


@dataclass(frozen=True)
class Resumed:
    """The run was begun before: what it has of then, in questions."""

    done: int
    failed: int
    left: int
    """Of those that were known; sources may have more by now."""


@dataclass(frozen=True)
class Settled:
    """One question about one picture has its outcome."""

    outcome: Outcome
    path: str
    """Of the picture, or of the request file that has it."""


@dataclass(frozen=True)
class HostChanged:
    """A host is met, fails, is there again, or is left out; `reason` says why, if it is bad."""

    name: str
    state: HostState
    reason: str = ""


@dataclass(frozen=True)
class Warned:
    """Something that a person should know of; the run goes on."""

    message: str
    hint: str = ""


@dataclass(frozen=True)
class Totals:
    """What became of the questions of this run so far."""

    done: int = 0
    failed: int = 0
    retry: int = 0
    """Times that one was put off: to be asked again, by this run or the next."""
    gone: int = 0
    copied: int = 0
    """Of `done`: those that an equal picture's answer stands for."""
    tokens: int = 0
    seconds: float = 0.0
    """Since the run began."""


@dataclass(frozen=True)
class Progress:
    """How the run stands, told about once a second."""

    counts: Totals
    rate: float
    """Questions settled a second, of late."""
    left: int | None
    """Questions that are not settled, where that is known."""
    hosts: tuple[HostLevel, ...]

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate."""
        return None if self.left is None or self.rate <= 0 else self.left / self.rate


Event = Resumed | Settled | HostChanged | Warned | Progress
Listener = Callable[[Event], None]


def nobody(_event: Event) -> None:
    """Listen to nothing."""


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    counts: Totals
    hosts: tuple[HostLevel, ...]
