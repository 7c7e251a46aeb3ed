"""What the page knows of all pictures before it has loaded them: tables, and how many of what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llava_ollama.batch.work import Row
from llava_ollama.gallery import scripts

_SECONDS = 2
"""Digits after the point."""
_ASKS = 1000
"""Questions that the page is told once; beyond, as with one for each picture, by each answer."""


class Index:
    """Turns rows into short lists of numbers and texts, and counts."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[Any, int]] = {
            name: {} for name in ("asks", "states", "finishes", "kinds", "hosts", "models")
        }
        self._counts: dict[str, Counter[int]] = {
            name: Counter() for name in ("states", "finishes", "kinds", "hosts")
        }
        self._asks: list[dict[str, Any]] = []
        self.pictures = 0
        self.answers = 0

    def answers_of(self, rows: Sequence[Row]) -> list[list[Any]]:
        """Return all that was answered about one picture, as the page reads it."""
        self.pictures += 1
        self.answers += len(rows)
        answers = [self._answer(row) for row in rows]
        for name, column in (("states", 1), ("finishes", 3), ("kinds", 4), ("hosts", 8)):
            self._counts[name].update({answer[column] for answer in answers})
        return answers

    def document(self, **place: str) -> dict[str, Any]:
        """Return what the page is told first, with its title and the `place` that it is in."""
        tables = {name: list(table) for name, table in self._tables.items() if name != "asks"}
        counts = {
            name: [count[number] for number in self._tables[name].values()]
            for name, count in self._counts.items()
        }
        return {
            **place,
            "pictures": self.pictures,
            "answers": self.answers,
            "shard": scripts.PICTURES,
            "thumbnails": scripts.THUMBNAILS,
            "folder": scripts.FOLDER,
            "asks": self._asks,
            **tables,
            "counts": counts,
        }

    def _answer(self, row: Row) -> list[Any]:
        return [
            self._ask(row),
            self._number("states", row.state),
            row.text,
            self._number("finishes", row.finish or ""),
            self._number("kinds", row.error_kind or ""),
            row.error,
            row.tokens,
            round(row.seconds, _SECONDS),
            self._number("hosts", row.host),
            self._number("models", row.model_digest),
        ]

    def _ask(self, row: Row) -> int | dict[str, Any]:
        known = self._tables["asks"]
        asked = {"prompt": row.prompt, "structured": row.structured}
        if row.ask not in known:
            if len(known) == _ASKS:
                return asked
            self._asks.append(asked)
        return self._number("asks", row.ask)

    def _number(self, table: str, value: Any) -> int:
        known = self._tables[table]
        return known.setdefault(value, len(known))
