"""Progress as bars on a terminal, as plain notes elsewhere. The owner of rich."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from llava_ollama.progress import Reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class ClosableReporter(Reporter):
    """A reporter that holds the terminal until it is closed."""

    def close(self) -> None:
        """Give the terminal back."""


class Notes(ClosableReporter):
    """Passes on notes and no progress: for logs, pipes and `--quiet`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def note(self, message: str) -> None:
        """Print a note."""
        self._say(message)


class Bars(ClosableReporter):
    """Draws one bar for each task: bytes, rate and time left."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def started(self, task: str, total: int | None = None) -> None:
        """Add a bar."""
        progress = self._start()
        self._tasks[task] = progress.add_task(task, total=total)

    def advanced(self, task: str, amount: int) -> None:
        """Move a bar on."""
        if self._progress is not None and task in self._tasks:
            self._progress.advance(self._tasks[task], amount)

    def restarted(self, task: str, done: int = 0) -> None:
        """Set a bar back."""
        if self._progress is not None and task in self._tasks:
            self._progress.update(self._tasks[task], completed=done)

    def finished(self, task: str) -> None:
        """Take a bar away; the last one gives the terminal back."""
        if self._progress is not None and task in self._tasks:
            self._progress.remove_task(self._tasks.pop(task))
            if not self._tasks:
                self.close()

    def note(self, message: str) -> None:
        """Print a note above the bars."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove all bars and show the cursor again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, no_color=not self._colour)

    def _start(self) -> Progress:
        if self._progress is None:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self._progress
