"""Shows a run: a line that moves on a terminal, a line now and then in a log, events as JSON."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from llava_ollama.batch.events import (
    Event,
    HostChanged,
    HostLevel,
    Progress,
    Resumed,
    Settled,
    Warned,
)
from llava_ollama.cli.output import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress as Bar

    from llava_ollama.batch.events import Summary
    from llava_ollama.batch.journal import Counts
    from llava_ollama.batch.sources import Found
    from llava_ollama.cli.output import Output

_EVERY = 10.0
"""Seconds between two lines of a log."""
_DAY, _HOUR, _MINUTE = 86400, 3600, 60


@contextmanager
def watching(out: Output) -> Iterator[Callable[[Event], None]]:
    """Yield what a run's events are told to; what a terminal shows is taken away at the end."""
    if out.json:
        yield lambda event: out.line(as_json(event))
    elif sys.stderr and sys.stderr.isatty() and not out.quiet:
        with _Moving(out) as moving:
            yield moving
    else:
        yield _Log(out)


def as_json(event: Event) -> dict[str, Any]:
    """Return an event with its name: `resumed`, `settled`, `host_changed`, `warned`, `progress`."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    more = {"seconds_left": event.seconds_left} if isinstance(event, Progress) else {}
    return {"event": name, **dataclasses.asdict(event), **more}


class _Log:
    """One line for what a person should know, and one for the progress every now and then."""

    def __init__(self, out: Output, say: Callable[[str], None] | None = None) -> None:
        self._say = say or out.note
        self._out = out
        self._next = time.monotonic() + _EVERY

    def __call__(self, event: Event) -> None:
        match event:
            case Resumed():
                self._say(resumed(event))
            case Settled():
                self._settled(event)
            case HostChanged():
                self._say(f"{event.name} is {event.state}{event.reason and f': {event.reason}'}")
            case Warned():
                self._say(f"Warning: {event.message}")
                if event.hint:
                    self._say(f"Hint: {event.hint}")
            case Progress():
                self._progress(event)

    def _settled(self, event: Settled) -> None:
        outcome = event.outcome
        if outcome.state in {"failed", "gone"}:
            self._say(f"{event.path}: {outcome.state}: {outcome.error}")

    def _progress(self, event: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            self._say(line(event))


class _Moving(_Log):
    """One line that moves, and remarks above it."""

    def __init__(self, out: Output) -> None:
        super().__init__(out, self._print)
        self._bar = _bar(colour=out.colour)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def _print(self, message: str) -> None:
        self._bar.console.print(
            one_line(message), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def _progress(self, event: Progress) -> None:
        counts = event.counts
        settled = counts.done + counts.failed + counts.gone
        total = None if event.left is None else settled + event.left
        self._bar.update(self._task, completed=settled, total=total, description=line(event))


def _bar(*, colour: bool) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, no_color=not colour)
    columns = BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)
    return Bar(*columns, console=console, transient=True)


def resumed(event: Resumed) -> str:
    """Return what a run has of before in one line."""
    parts = [f"{event.done:,} done"]
    parts += [f"{event.failed:,} failed"] if event.failed else []
    return f"The run goes on: {', '.join(parts)}, {event.left:,} to go"


def line(event: Progress) -> str:
    """Return how a run stands in one line."""
    counts = event.counts
    parts = [f"{counts.done:,} done"]
    parts += [f"{counts.failed:,} failed"] if counts.failed else []
    parts += [f"{event.left:,} to go"] if event.left is not None else []
    parts += [f"{event.rate:.1f}/s"]
    parts += [f"{span(event.seconds_left)} left"] if event.seconds_left is not None else []
    return ", ".join(parts) + "; " + ", ".join(map(_host, event.hosts))


def _host(host: HostLevel) -> str:
    name = host.name.removeprefix("http://")
    return f"{name} at {host.level}" if host.state == "up" else f"{name} {host.state}"


def ended(out: Output, run: Path, summary: Summary, counts: Counts, found: Found) -> None:
    """Say what became of a run this time, and what it did not look at."""
    if out.json:
        names = ("skipped", "gone", "hidden", "sidecars", "unreadable", "seen_before")
        out.line(
            {
                "event": "end",
                "run": str(run),
                **dataclasses.asdict(summary.counts),
                "left": counts.unfinished,
                "truncated": counts.truncated,
                "found": {name: getattr(found, name) for name in names},
            }
        )
        return
    out.result(None, _became(summary, counts.unfinished))
    for remark in _remarks(counts, found):
        out.note(remark)
    out.note(f"`llava-ollama export {run}` or `llava-ollama gallery {run}` shows the answers")


def _became(summary: Summary, left: int) -> str:
    counts = summary.counts
    parts = [f"{counts.done:,} answered"]
    parts += [f"{counts.copied:,} of them as an equal picture was"] if counts.copied else []
    parts += [f"{counts.failed:,} failed"] if counts.failed else []
    parts += [f"{counts.gone:,} gone"] if counts.gone else []
    parts += [f"{left:,} left"] if left else []
    return ", ".join(parts)


def _remarks(counts: Counts, found: Found) -> Iterator[str]:
    yield from found.told
    if (more := found.unreadable - len(found.told)) > 0:
        yield f"and {more:,} more cannot be read"
    if counts.truncated:
        yield f"{counts.truncated:,} answers are cut off at their limit; their finish is `length`"
    if found.gone:
        yield f"{found.gone:,} pictures that are named are not there; their state is `gone`"
    if found.skipped:
        yield f"{found.skipped:,} files were skipped: they are not named like pictures"
    if found.hidden:
        yield f"{found.hidden:,} hidden files and folders were passed by"


def tell_of_the_rest(out: Output, counts: Counts) -> None:
    """Say of what is made from a run that has not ended how much it lacks."""
    if counts.unfinished:
        out.note(f"{counts.unfinished:,} of {counts.total:,} answers are still to come")


def span(seconds: float) -> str:
    """Return a time for people, such as `3 h 20 min`."""
    left = round(seconds)
    if left >= _DAY:
        return f"{left // _DAY} d {left % _DAY // _HOUR} h"
    if left >= _HOUR:
        return f"{left // _HOUR} h {left % _HOUR // _MINUTE} min"
    return f"{left // _MINUTE} min" if left >= 10 * _MINUTE else f"{left} s"
