"""Runs of the batch whose time is taken: from the first picture read to the last answer noted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llava_ollama.batch import run
from llava_ollama.batch.hosts import Host, OllamaSite
from llava_ollama.batch.outcomes import Patience
from llava_ollama.batch.pace import Level
from llava_ollama.batch.run import Manner
from llava_ollama.batch.work import Outcome
from tests.batches import jobs
from tests.chunks import ChunkFeed
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.installing import install

VERSION = "0.34.4"


@dataclass
class Done:
    """A run that is over."""

    seconds: float
    feed: ChunkFeed
    hosts: Sequence[Host] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Outcome]:
        return list(self.feed.outcomes.values())


class Watched(ChunkFeed):
    """Counts what is sent, and calls `then` when `after` are answered."""

    def __init__(
        self, paths: Sequence[Path], after: int = 0, then: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(jobs(paths))
        self._after, self._then = after, then
        self.sent = 0

    def sending(self, item: int, ask: int) -> None:
        super().sending(item, ask)
        self.sent += 1

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        if len(self.outcomes) == self._after:
            self._then()


def timed(
    hosts: Sequence[tuple[str, str, Level]], feed: ChunkFeed, *, timeout: float = 60.0
) -> Done:
    """Run `feed` on hosts, each a URL, a model and a pace."""
    known = [Host(OllamaSite(name, url, timeout=timeout), pace) for url, name, pace in hosts]

    async def whole() -> float:
        agreed = await run.agree(known, wait=10)
        begun = time.perf_counter()
        await run.run(known, feed, agreed, Manner(Patience(hosts=30.0, again=0.5)))
        return time.perf_counter() - begun

    return Done(asyncio.run(whole()), feed, known)


def alone(url: str, name: str, pace: Level, paths: Sequence[Path]) -> float:
    """Return the seconds of a run on one host, of which every picture must be answered."""
    done = timed([(url, name, pace)], ChunkFeed(jobs(paths)))
    assert {outcome.state for outcome in done.outcomes} == {"done"}
    return done.seconds


@contextmanager
def tiny(folder: Path) -> Iterator[tuple[str, str]]:
    """Start 0.34.4 with the tiny model; yield its address and the model's name."""
    daemon = RunningDaemon(VERSION, folder, build.ensure(VERSION)).start()
    try:
        yield daemon.host, install(daemon.host, folder, "tiny")
    finally:
        daemon.stop()
