"""Looks at a run from outside: counts, questions and rows, also while another process works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from llava_ollama.batch.journal import database, leases, place
from llava_ollama.batch.journal.changes import as_path
from llava_ollama.batch.journal.config import Asked, Config, from_text
from llava_ollama.batch.journal.database import CODE, STATES
from llava_ollama.batch.work import ErrorKind, Row, State

_PAGE = 1000
_ASKS = 1024
"""Rows a page, and questions that are kept: with one for each picture there are many."""
_COLUMNS = """SELECT a.item, i.path, i.custom_id, i.sha256, i.width, i.height, a.ask, a.state,
    a.text, a.finish, a.error_kind, a.error, a.tokens, a.seconds, h.url
    FROM answer a JOIN item i ON i.id = a.item LEFT JOIN host h ON h.id = a.host
    WHERE"""
_ROWS = f"{_COLUMNS} (a.item, a.ask) > (?, ?) ORDER BY a.item, a.ask LIMIT ?"
_FAILURES = f"{_COLUMNS} a.state = {CODE['failed']} ORDER BY a.item, a.ask LIMIT ?"


@dataclass(frozen=True)
class HostCounts:
    """What one host has answered; `level` is how many requests at a time it is given."""

    url: str
    answers: int
    tokens: int
    seconds: float
    level: int | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class Counts:
    """How far a run is."""

    pictures: int
    """All that sources have found, with what is no picture."""
    states: Mapping[State, int]
    """Answers by their state, one for each picture and question."""
    errors: Mapping[ErrorKind, int]
    """Failed ones by their kind."""
    truncated: int
    """Done ones that were cut off at their greatest length."""
    tokens: int
    seconds: float
    """Completion tokens, and seconds that hosts were busy with them."""
    hosts: tuple[HostCounts, ...]
    rate: float = 0.0
    """Questions settled a second, as the run last noted it."""
    sending: int = 0
    """Questions that are with a host, or were when the process died."""

    @property
    def total(self) -> int:
        """All answers that there are or will be."""
        return sum(self.states.values())

    @property
    def unfinished(self) -> int:
        """Answers that are still to come."""
        return self.states["pending"] + self.states["retry"]

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the last rate."""
        return self.unfinished / self.rate if self.rate > 0 else None


class Reading:
    """A view of a run that changes nothing; a context manager, for one thread at a time."""

    def __init__(self, run: Path) -> None:
        """Open the run in the folder `run`.

        Raises:
            UsageProblem: it is no run, or its journal is on another machine or of a newer version.
            LlavaOllamaError: its journal cannot be opened.
        """
        self.run = run
        self.folder = place.find(run)
        """Where its journal and its small pictures lie: the run, or this machine's state folder."""
        self.path = self.folder / database.FILE
        self._db = database.connect(self.path, writable=False)
        self._asked = lru_cache(_ASKS)(self._load_ask)

    def config(self) -> Config:
        """Return what the run was begun with, and the questions added since."""
        with database.door(self.path):
            run = dict(self._db.execute("SELECT key, value FROM run"))
        asks = tuple(one.ask for one in self.asks())
        return Config(run.get("model", ""), run.get("model_digest", ""), asks)

    def asks(self) -> tuple[Asked, ...]:
        """Return what is asked of every picture that brought no question of its own."""
        with database.door(self.path):
            rows = self._db.execute("SELECT id FROM ask WHERE NOT own ORDER BY id").fetchall()
        return tuple(self._asked(row[0]) for row in rows)

    def counts(self) -> Counts:
        """Return how far the run is, from some rows that are kept up to date for this."""
        with database.door(self.path):
            tally = self._db.execute(
                "SELECT state, kind, host, truncated, n, tokens, seconds FROM tally WHERE n > 0"
            ).fetchall()
            pictures = self._db.execute("SELECT max(id) FROM item").fetchone()[0] or 0
            known = self._db.execute("SELECT id, url, level, tokens_per_s FROM host").fetchall()
            rate = self._db.execute("SELECT value FROM run WHERE key = 'rate'").fetchone()
            settled = dict(self._db.execute("SELECT slot, serial FROM settled").fetchall())
        states: Counter[State] = Counter(dict.fromkeys(STATES, 0))
        errors: Counter[ErrorKind] = Counter()
        for state, kind, _, _, n, _, _ in tally:
            states[STATES[state]] += n
            if kind and state == CODE["failed"]:
                errors[kind] += n
        done = [row for row in tally if row[0] == CODE["done"]]
        return Counts(
            pictures,
            dict(states),
            dict(errors),
            truncated=sum(row[4] for row in done if row[3]),
            tokens=sum(row[5] for row in done),
            seconds=sum(row[6] for row in done),
            hosts=tuple(_host(row, done) for row in known),
            rate=float(rate[0]) if rate else 0.0,
            sending=len(leases.left(self.folder, settled)),
        )

    def rows(self) -> Iterator[Row]:
        """Yield every picture and question, in the order in which pictures were found.

        It is read page by page: no page keeps a writer from tidying up, and what changes in the
        meantime is told as it is when its page is read.
        """
        after = (0, 0)
        while True:
            with database.door(self.path):
                page = self._db.execute(_ROWS, (*after, _PAGE)).fetchall()
            yield from map(self._row, page)
            if len(page) < _PAGE:
                return
            after = (page[-1][0], page[-1][6])

    def failures(self, most: int) -> list[Row]:
        """Return the first answers that failed; without an index, since few ask for them."""
        with database.door(self.path):
            return [*map(self._row, self._db.execute(_FAILURES, (most,)).fetchall())]

    def _row(self, row: tuple[Any, ...]) -> Row:
        item, path, custom_id, sha256, width, height, ask, state, text, *rest = row
        finish, error_kind, error, tokens, seconds, host = rest
        asked = self._asked(ask)
        return Row(
            item,
            as_path(path),
            as_path(custom_id),
            sha256.hex() if sha256 else None,
            width,
            height,
            ask,
            asked.ask.prompt,
            asked.ask.system,
            structured=asked.ask.schema is not None,
            state=STATES[state],
            text=text,
            finish=finish or None,
            error_kind=error_kind or None,
            error=error,
            tokens=tokens,
            seconds=seconds,
            host=host or "",
            model_digest=asked.model_digest,
        )

    def asked(self, number: int) -> Asked:
        """Return the question of this id."""
        return self._asked(number)

    def _load_ask(self, number: int) -> Asked:
        with database.door(self.path):
            row = self._db.execute(
                "SELECT id, ask, model_digest, preparation, own FROM ask WHERE id = ?", (number,)
            ).fetchone()
        return Asked(row[0], from_text(row[1]), row[2], row[3], bool(row[4]))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _host(row: tuple[Any, ...], done: list[tuple[Any, ...]]) -> HostCounts:
    number, url, level, tokens_per_s = row
    own = [one for one in done if one[2] == number]
    n, tokens, seconds = (sum(one[column] for one in own) for column in (4, 5, 6))
    return HostCounts(url, n, tokens, seconds, level, tokens_per_s)
