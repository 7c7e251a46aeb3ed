"""What long work tells whoever waits for it.

The library never prints. It reports to a `Reporter`; the silent one is the default, and the
command line passes one that draws bars.
"""

from __future__ import annotations


class Reporter:
    """Receives the progress of long work; this base class ignores all of it."""

    def started(self, task: str, total: int | None = None) -> None:
        """Work named `task` begins; `total` is its size in bytes where that is known."""

    def counting(self, task: str, total: int | None = None) -> None:
        """Work named `task` begins whose amounts are things, such as rows, instead of bytes."""

    def advanced(self, task: str, amount: int) -> None:
        """`amount` more bytes, or things, of `task` are done."""

    def restarted(self, task: str, done: int = 0) -> None:
        """`task` stands at `done` bytes again, for instance because a server ignored a range."""

    def finished(self, task: str) -> None:
        """`task` is done or given up."""

    def note(self, message: str) -> None:
        """Say one thing that a person may want to know; the work goes on."""


SILENT = Reporter()
