"""Runs over drawn pictures, for the tests of the batch's rooms."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_ollama.batch import run
from llava_ollama.batch.events import Event, Summary
from llava_ollama.batch.hosts import Host, OllamaSite
from llava_ollama.batch.outcomes import Patience
from llava_ollama.batch.pace import Fixed
from llava_ollama.batch.run import Manner
from llava_ollama.batch.work import Ask, Item, Job, Question
from llava_ollama.tiny import shapes
from tests.chunks import ChunkFeed
from tests.drawn import one_shape_pictures

DESCRIBE = Ask("Describe this image", options={"num_predict": 40})
QUICK = Patience(hosts=10.0, again=0.05)
"""For tests: what is put off comes again soon."""


def drawn(folder: Path, count: int, seed: int = 0) -> dict[Path, shapes.Shape]:
    """Draw pictures into `folder`; return what is on each."""
    folder.mkdir(exist_ok=True)
    found = {}
    for number, (picture, shape) in enumerate(one_shape_pictures(count, seed)):
        path = folder / f"{number:04}.png"
        picture.save(path)
        found[path] = shape
    return found


def jobs(paths: Sequence[Path | str], *asks: Ask) -> Iterator[Job]:
    """Ask everything of each picture."""
    questions = tuple(Question(number, ask) for number, ask in enumerate(asks or (DESCRIBE,)))
    for number, path in enumerate(paths):
        yield Job(Item(number, str(path)), questions)


def host(url: str, model: str = "tiny", level: int = 2, timeout: float = 60.0) -> Host:
    return Host(OllamaSite(model, url, timeout=timeout), Fixed(level))


def asked(
    hosts: Sequence[Host],
    feed: ChunkFeed,
    manner: Manner | None = None,
    heard: list[Event] | None = None,
) -> Summary:
    """Run to the end."""
    tell = (heard if heard is not None else []).append

    async def whole() -> Summary:
        try:
            agreed = await run.agree(hosts, wait=10, tell=tell)
            return await run.run(hosts, feed, agreed, manner or Manner(QUICK), tell=tell)
        finally:
            for one in hosts:
                await one.site.close()

    return asyncio.run(whole())
