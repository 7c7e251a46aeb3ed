"""Progress as bars on a terminal, as plain notes elsewhere. The owner of rich."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from llava_ollama.cli.output import one_line
from llava_ollama.progress import Reporter

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, ProgressColumn, Task, TaskID


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
        self._add(task, total, things=False)

    def counting(self, task: str, total: int | None = None) -> None:
        """Add a bar without bytes."""
        self._add(task, total, things=True)

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
        self._console.print(
            one_line(message), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def close(self) -> None:
        """Remove all bars and show the cursor again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, no_color=not self._colour)

    def _add(self, task: str, total: int | None, *, things: bool) -> None:
        progress = self._start()
        self._tasks[task] = progress.add_task(one_line(task), total=total, things=things)

    def _start(self) -> Progress:
        if self._progress is None:
            from rich.progress import Progress

            self._progress = Progress(*_columns(), console=self._console, transient=True)
            self._progress.start()
        return self._progress


def _columns() -> list[ProgressColumn]:
    """Return the columns of a bar; only the time where neither a total nor bytes are known."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    class Counted(ProgressColumn):
        def __init__(self, column: ProgressColumn, otherwise: ProgressColumn) -> None:
            super().__init__()
            self._column, self._otherwise = column, otherwise

        def render(self, task: Task) -> RenderableType:
            counted = task.total is not None or task.completed
            return (self._column if counted else self._otherwise)(task)

    class ForBytes(Counted):
        def render(self, task: Task) -> RenderableType:
            return (self._otherwise if task.fields["things"] else self._column)(task)

    nothing, count = TextColumn(""), TextColumn("{task.completed:,.0f}")
    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        ForBytes(Counted(DownloadColumn(), TimeElapsedColumn()), count),
        ForBytes(Counted(TransferSpeedColumn(), nothing), nothing),
        Counted(TimeRemainingColumn(), nothing),
    ]


@contextmanager
def waiting(reporter: Reporter, task: str) -> Iterator[Callable[[], None]]:
    """Report that an answer is awaited when that takes long; yield what to call when it begins."""
    lock, over, told = threading.Lock(), threading.Event(), threading.Event()

    def tell() -> None:
        with lock:
            if not over.is_set():
                reporter.started(task)
                told.set()

    def arrived() -> None:
        with lock:
            over.set()
        timer.cancel()
        if told.is_set():
            told.clear()
            reporter.finished(task)

    timer = threading.Timer(_LONG, tell)
    timer.daemon = True
    timer.start()
    try:
        yield arrived
    finally:
        arrived()


_LONG = 1.0
"""Seconds; a model that is loaded answers sooner."""
