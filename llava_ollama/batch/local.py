"""A run on hosts that this process asks itself, from the folder to the last answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ollama.batch import run as running
from llava_ollama.batch.asking import GREEDY
from llava_ollama.batch.events import (
    Event,
    Listener,
    Progress,
    Resumed,
    Summary,
    Warned,
    nobody,
)
from llava_ollama.batch.hosts import Host, Site
from llava_ollama.batch.journal import Config, Journal, JournalFeed, Reading
from llava_ollama.batch.journal.changes import Entry
from llava_ollama.batch.levels import Levels
from llava_ollama.batch.outcomes import Patience
from llava_ollama.batch.pace import Fixed, Pace
from llava_ollama.batch.run import Agreed, Manner
from llava_ollama.batch.thumbnails import thumbnail
from llava_ollama.batch.work import Ask
from llava_ollama.errors import LlavaOllamaError

UNKNOWN = "unknown"
"""The digest of a model whose host cannot tell it."""


@dataclass(frozen=True)
class Batch:
    """What is to be asked of which model, and in which folder it is written down."""

    run: Path
    model: str
    """Its name, for people."""
    asks: tuple[Ask, ...]
    """Empty where every picture brings its own."""
    state: Path
    """The folder for what outlives a run (`Settings.state`)."""
    add: bool = False
    """Whether questions that the run does not have yet are added to it."""
    limit: int | None = None
    """Pictures after which no more are asked about."""
    sample: int | None = None
    """Pictures to be drawn from all that are unfinished."""
    retry_failed: bool = False
    wait: float = 600.0
    """Seconds without an answer of any host, after which the run ends."""
    concurrency: int | None = None
    """Questions that a host has at once; None finds what is best."""


def asks(
    prompts: Iterable[str],
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
    schema: Mapping[str, Any] | None = None,
) -> tuple[Ask, ...]:
    """Return questions; at temperature 0 unless `options` says otherwise."""
    from llava_ollama.extract import OPTIONS

    base = OPTIONS if schema is not None else GREEDY
    return tuple(Ask(prompt, system, {**base, **(options or {})}, schema) for prompt in prompts)


def begun_with(run: Path) -> Config | None:
    """Return what a run asks, or None where there is no run that can be read."""
    try:
        with Reading(run) as reading:
            return reading.config()
    except LlavaOllamaError:  # whoever goes on with it says what is wrong
        return None


def describe(
    batch: Batch, sites: Sequence[Site], entries: Iterable[Entry] = (), *, tell: Listener = nobody
) -> Summary:
    """Begin the run or go on with it, until all is settled; `entries` are read meanwhile.

    Ctrl-C, or whatever else cancels it, lets what is under way be answered; the rest stays for
    the next time.

    Raises:
        UsageProblem: the run was begun otherwise or is under way, or hosts hold another model.
        CheckFailed: the model does not see.
        DaemonUnreachable: no host has answered for `batch.wait` seconds.
        LlavaOllamaError: the journal cannot be written.
    """
    return asyncio.run(_describe(batch, sites, entries, tell))


async def _describe(
    batch: Batch, sites: Sequence[Site], entries: Iterable[Entry], tell: Listener
) -> Summary:
    hosts = [Host(site, Fixed(batch.concurrency or 1)) for site in sites]
    try:
        agreed = await running.agree(hosts, wait=batch.wait, tell=tell)
        with opened(batch, agreed.digest, entries, tell) as book:
            return await _work(batch, hosts, book, agreed=agreed, tell=tell)
    finally:
        for host in hosts:
            await host.site.close()


async def _work(
    batch: Batch, hosts: Sequence[Host], book: Book, *, agreed: Agreed, tell: Listener
) -> Summary:
    levels = Levels(batch.state)
    if batch.concurrency is None:
        for host in hosts:
            host.pace = Pace(levels.get(host.name, agreed.digest))
    manner = Manner(
        patience=Patience(hosts=batch.wait),
        thumbnail=thumbnail,
        left=book.left,
    )
    try:
        return await running.run(hosts, book.feed, agreed, manner, tell=book.noting(tell))
    finally:
        for host in hosts:
            if isinstance(host.pace, Pace) and host.pace.rate:
                levels.put(host.name, agreed.digest, host.pace.settled)


@dataclass
class Book:
    """A run's journal and what belongs to it, open for writing."""

    journal: Journal
    feed: JournalFeed
    reading: Reading

    def left(self) -> int | None:
        """Return how many questions are not settled, as far as sources have been read."""
        return self.reading.counts().unfinished

    def noting(self, tell: Listener) -> Listener:
        """Return a listener that also notes, for `status`, how fast the run is."""

        def heard(event: Event) -> None:
            if isinstance(event, Progress):
                # Whatever is wrong with the journal, the feed says it.
                with suppress(LlavaOllamaError):
                    self._note(event)
            tell(event)

        return heard

    def _note(self, progress: Progress) -> None:
        self.journal.rate(progress.rate)
        for host in progress.hosts:
            if host.state == "up":
                self.journal.level(host.name, host.level, host.tokens_per_s)


@contextmanager
def opened(
    batch: Batch, digest: str | None, entries: Iterable[Entry], tell: Listener
) -> Iterator[Book]:
    """Open the run of a batch and begin to read its sources."""
    config = Config(batch.model, digest or UNKNOWN, batch.asks)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(batch.run, config, state=batch.state, add=batch.add))
        if journal.network:
            tell(
                Warned(
                    f"`{batch.run}` is on a network file system ({journal.network}), where a"
                    f" journal is not safe; it is kept in `{journal.folder}`"
                )
            )
        if batch.retry_failed:
            journal.retry_failed()
        reading = stack.enter_context(journal.reading())
        counts = reading.counts()
        if counts.total:
            tell(Resumed(counts.states["done"], counts.states["failed"], counts.unfinished))
        feed = JournalFeed(journal, limit=batch.limit, sample=batch.sample)
        stack.callback(feed.close)
        feed.fill(entries)
        yield Book(journal, feed, reading)
