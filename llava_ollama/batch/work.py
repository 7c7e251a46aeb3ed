"""The values that sources, journal, runner and exports hand to each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from llava_ollama.engine.interface import Finish

PREPARATION = 1
"""Counts up when the same picture file would be made other pixels, or the same words other text."""

SUSPECT = 2
"""Deaths in which a picture was in flight, from which on it goes last and alone."""

State = Literal["pending", "done", "failed", "retry", "skipped", "gone"]
ErrorKind = Literal["picture", "request", "crash", "timeout", "empty", "daemon", "answer"]
"""Why an answer is missing: the file, what was asked, a runner that died, a host that was silent,
an answer without a word, a daemon's error, or an answer that does not fit its schema."""


@dataclass(frozen=True)
class Ask:
    """One question, the same for every picture that it is asked of."""

    prompt: str
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None

    def fingerprint(self, model_digest: str) -> str:
        """Return the sha256 (hex) of all that an answer depends on, the picture apart."""
        parts = [self.prompt, self.system, dict(self.options), self.schema]
        text = json.dumps([*parts, model_digest, PREPARATION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """One picture of a run; the same file may be there twice, under two ids of the user's own."""

    id: int
    path: str
    """As `os.fsdecode` gives it: bytes that are not UTF-8 are lone surrogates."""
    custom_id: str = ""
    offset: int | None = None
    """Where `path` is a file of requests: the byte at which the line begins that has the picture
    inside, as a `data:` URI."""


@dataclass(frozen=True)
class Question:
    """An `Ask` that is to be put, and how often that was tried before."""

    id: int
    ask: Ask
    attempts: int = 0


@dataclass(frozen=True)
class Job:
    """One picture with all that is to be asked of it, one after the other on the same host."""

    item: Item
    questions: tuple[Question, ...]
    crashes: int = 0
    """Runs that died while it was with a host."""

    @property
    def is_suspect(self) -> bool:
        """Whether it goes last and alone."""
        return self.crashes >= SUSPECT


@dataclass(frozen=True)
class Seen:
    """What reading a picture found, for the journal and the gallery."""

    item: int
    sha256: str
    size: int
    mtime_ns: int
    width: int
    height: int
    """Of the upright picture, in pixels."""
    thumbnail: bytes | None = None
    """A small JPEG of it, made from what the model sees."""


@dataclass(frozen=True)
class Outcome:
    """What became of one question about one picture."""

    item: int
    ask: int
    state: State
    text: str = ""
    finish: Finish | None = None
    tokens: int = 0
    """Completion tokens."""
    seconds: float = 0.0
    host: str = ""
    attempts: int = 0
    """Including this one; what was the host's fault is none."""
    error_kind: ErrorKind | None = None
    error: str = ""
    """The message, without its hint."""
    retry_at: float | None = None
    """Of state `retry`: not before this time, in seconds since the epoch."""
    copied_from: int | None = None
    """The item with the same bytes that was asked instead."""

    def copy(self, item: int, ask: int) -> Outcome:
        """Return this answer as that of an equal picture, which cost nothing."""
        origin = self.item if self.copied_from is None else self.copied_from
        return replace(
            self, item=item, ask=ask, tokens=0, seconds=0.0, attempts=0, copied_from=origin
        )


@dataclass(frozen=True)
class Row:
    """One line of an export: a picture and a question, as the journal has them."""

    item: int
    path: str
    custom_id: str
    sha256: str | None
    width: int | None
    height: int | None
    ask: int
    prompt: str
    system: str | None
    structured: bool
    """Whether the answer was held to a schema, so that its text is JSON."""
    state: State
    text: str
    finish: Finish | None
    error_kind: ErrorKind | None
    error: str
    tokens: int
    seconds: float
    host: str
    model_digest: str


class Feed(Protocol):
    """Where a runner gets its work and leaves its results: the journal, or a chunk of it.

    No method waits for a disk. All are called from the runner's event loop.
    """

    def take(self, most: int) -> list[Job]:
        """Return up to `most` jobs that nobody else has; none when there are none at present."""
        ...

    def wait(self) -> float | None:
        """Return the seconds until there may be more (a retry, a source still read), or None.

        None says that there will be nothing more.
        """
        ...

    def seen(self, seen: Seen) -> None:
        """Note what reading a picture found."""
        ...

    def answered(self, sha256: str, ask: int) -> Outcome | None:
        """Return what an equal picture was answered, if one was, and may be again."""
        ...

    def sending(self, item: int, ask: int) -> None:
        """Note that a host is about to be handed this; it counts as in flight until settled."""
        ...

    def settle(self, outcome: Outcome) -> None:
        """Note what became of a question."""
        ...

    def give_back(self, item: int) -> None:
        """Return a job unasked: it is pending again, without an attempt more."""
        ...
