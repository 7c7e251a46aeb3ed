"""Rows by hand, and runs with a real journal, for what is made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_ollama.batch.journal import Config, Entry, Journal, JournalFeed
from llava_ollama.batch.work import Ask, Outcome, Row

PLAIN = Row(
    item=1,
    path="/p/cat.jpg",
    custom_id="",
    sha256="0" * 64,
    width=640,
    height=480,
    ask=1,
    prompt="Describe this image",
    system=None,
    structured=False,
    state="done",
    text="A cat on a mat.",
    finish="stop",
    error_kind=None,
    error="",
    tokens=6,
    seconds=0.25,
    host="http://127.0.0.1:11434",
    model_digest="a" * 64,
)


def row(item: int, path: str | Path, text: str = "A cat.", **more: Any) -> Row:
    return replace(PLAIN, item=item, path=str(path), text=text, **more)


def given(rows: Sequence[Row]) -> Callable[[], Iterator[Row]]:
    return lambda: iter(rows)


def journal(run: Path, answers: Sequence[tuple[Path, str]]) -> None:
    """Make a run in which each picture was answered so."""
    config = Config("tiny", "a" * 64, (Ask("Describe this image"),))
    with (
        Journal(run, config, state=run.parent / "state") as made,
        closing(JournalFeed(made)) as feed,
    ):
        made.add([Entry(str(path)) for path, _ in answers])
        texts = {str(path): text for path, text in answers}
        while jobs := feed.take(100):
            for job in jobs:
                (asked,) = job.questions
                feed.sending(job.item.id, asked.id)
                text = texts[job.item.path]
                feed.settle(Outcome(job.item.id, asked.id, "done", text, "stop", 3, 0.5, "h", 1))
