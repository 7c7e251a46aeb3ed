"""Which sidecar belongs to which picture, and whether any two pictures would share one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from llava_ollama.batch.work import Row
from llava_ollama.errors import UsageProblem
from llava_ollama.export.doors import check_folder
from llava_ollama.export.interface import Rows

_BITS = 27
"""Of the hash of a name: 16 MiB, in which a million names have 4,000 false alarms."""


@dataclass(frozen=True)
class Naming:
    """How a sidecar is called: after the whole name of the picture, or its stem."""

    suffix: str
    full: bool

    def of(self, picture: str) -> str:
        """Return the sidecar's path beside a picture."""
        return (picture if self.full else os.path.splitext(picture)[0]) + self.suffix  # noqa: PTH122 - a text, millions of times


def pictures(rows: Rows) -> Iterator[list[Row]]:
    """Yield what was answered about each picture; none without an answer."""
    done = (row for row in rows() if row.state == "done")
    for _, group in groupby(done, key=lambda row: row.item):
        yield list(group)


def resolve(rows: Rows, naming: Naming, place: Path | None, hint: str) -> Callable[[str], str]:
    """Return what tells a picture's sidecar: beside it, or in the same tree below `place`.

    Raises:
        UsageProblem: two pictures would share one, or the place is none; the hint for the first.
    """
    if place is not None:
        check_folder(place)
    common = _common(rows) if place is not None else ""
    below = os.fspath(place) if place is not None else ""

    def target(picture: str) -> str:
        beside = naming.of(picture)
        return os.path.join(below, os.path.relpath(beside, common)) if below else beside  # noqa: PTH118 - likewise

    _check_shared(rows, target, hint)
    return target


def _common(rows: Rows) -> str:
    """Return the deepest folder that has all answered pictures."""
    common, last = None, None
    for group in pictures(rows):
        if (folder := os.path.dirname(group[0].path)) == last:  # noqa: PTH120 - likewise
            continue
        last = folder
        try:
            common = os.path.commonpath([common, folder]) if common is not None else folder
        except ValueError as exc:  # two drives of Windows
            raise UsageProblem(
                f"`{common}` and `{folder}` have no folder in common",
                hint="Leave out `-o`: sidecars then go beside the pictures",
            ) from exc
    return common or os.curdir


def _check_shared(rows: Rows, target: Callable[[str], str], hint: str) -> None:
    """Find two pictures with one sidecar, in memory that does not grow with them.

    A bit for each name finds those that may be there twice; a second round looks at these alone.
    """
    bits, mask = bytearray(1 << _BITS - 3), (1 << _BITS) - 1
    suspects: set[int] = set()
    for group in pictures(rows):
        at = hash(target(group[0].path)) & mask
        if bits[at >> 3] & 1 << (at & 7):
            suspects.add(at)
        bits[at >> 3] |= 1 << (at & 7)
    if not suspects:
        return
    first: dict[str, Row] = {}
    for group in pictures(rows):
        row, name = group[0], target(group[0].path)
        if hash(name) & mask in suspects and (other := first.setdefault(name, row)) is not row:
            raise UsageProblem(_shared(other, row, name), hint=hint)


def _shared(one: Row, other: Row, name: str) -> str:
    if one.path == other.path:
        return (
            f"`{one.path}` is there twice, as `{one.custom_id}` and `{other.custom_id}`, "
            f"and `{name}` can hold only one"
        )
    return f"`{one.path}` and `{other.path}` would share `{name}`"
