"""The seam: rows of a journal in, files out, and what is said of them.

An export first plans, which reads only and finds what stands in the way of the whole, then
writes. It goes over the rows as often as it needs, and never holds more than one picture's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llava_ollama.batch.work import Row

Rows = Callable[[], Iterator[Row]]
"""Begins anew with each call; the rows of one picture follow each other."""
Format = Literal["txt", "jsonl", "csv", "parquet", "xmp", "openai"]
Existing = Literal["skip", "overwrite", "append"]
"""What happens to a sidecar that is there already."""
_NAMED = 100
"""Problems that are told one by one; a million unwritable folders are only counted."""


@dataclass(frozen=True)
class Problem:
    """A file that could not be written, and why."""

    path: str
    what: str


@dataclass
class Result:
    """What an export did, in files."""

    format: Format
    files: list[str] = field(default_factory=list)
    """Of a table; sidecars are only counted."""
    written: int = 0
    skipped: int = 0
    appended: int = 0
    unchanged: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)
    """The first hundred of those that failed."""

    def fail(self, path: str, what: str) -> None:
        """Count a file that could not be written."""
        self.failed += 1
        if len(self.problems) < _NAMED:
            self.problems.append(Problem(path, what))


class Export(Protocol):
    """One format."""

    @property
    def format(self) -> Format:
        """Its name."""
        ...

    def plan(self, rows: Rows) -> None:
        """Read what is there, write nothing.

        Raises:
            UsageProblem: two pictures would share a file, or the place is none.
            EngineUnavailable: a library is missing.
        """
        ...

    def write(self, rows: Rows) -> Result:
        """Write the files, each whole or not at all; one that fails does not stop the others.

        Raises:
            NotEnoughSpace: the disk is full.
            LlavaOllamaError: a table cannot be written.
        """
        ...
