"""Sidecars: a file beside each picture, which may be there already and is then somebody's work."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llava_ollama import whole
from llava_ollama.batch.work import Row
from llava_ollama.export.doors import FULL, writing
from llava_ollama.export.interface import Existing, Format, Result, Rows
from llava_ollama.export.targets import Naming, pictures, resolve

LARGEST = 16 << 20
"""Bytes of a sidecar that is read to be changed."""


class Unreadable(Exception):
    """What is there already is left as it is, for this reason."""


class Content(Protocol):
    """What is in a sidecar."""

    def fresh(self, rows: Sequence[Row]) -> bytes | None:
        """Return a new one; None where there is nothing to say."""
        ...

    def merged(self, old: bytes, rows: Sequence[Row], existing: Existing) -> bytes:
        """Return `old` with the answers in it as `existing` tells; `old` itself to leave it.

        Raises:
            Unreadable: it is not what its name says.
        """
        ...


@dataclass
class Sidecars:
    """A format of sidecars."""

    format: Format
    content: Content
    naming: Naming
    place: Path | None
    """The folder below which the tree is mirrored; None for beside the pictures."""
    existing: Existing
    hint: str
    """What helps where two pictures would share a sidecar."""
    _target: Callable[[str], str] | None = field(default=None, init=False)
    _swept: str | None = field(default=None, init=False)

    def plan(self, rows: Rows) -> None:
        """Find two pictures that would share a sidecar."""
        self._target = resolve(rows, self.naming, self.place, self.hint)

    def write(self, rows: Rows) -> Result:
        """Write or change the sidecars; a folder that refuses is a problem, a full disk the end."""
        if self._target is None:
            self.plan(rows)
        assert self._target is not None  # noqa: S101 - for mypy: the plan has set it
        result = Result(self.format)
        for group in pictures(rows):
            target = self._target(group[0].path)
            try:
                self._write(target, group, result)
            except Unreadable as exc:
                result.fail(target, str(exc))
            except ValueError as exc:  # a NUL in a name
                result.fail(target, str(exc))
            except OSError as exc:
                if exc.errno in FULL:
                    with writing(target):
                        raise
                result.fail(target, exc.strerror or str(exc))
        return result

    def _write(self, target: str, group: list[Row], result: Result) -> None:
        if (fresh := self.content.fresh(group)) is None:
            return
        self._make_folder(os.path.dirname(target))  # noqa: PTH120 - a text, millions of times
        old = _read(target)
        new = fresh if old is None else self._beside(old, fresh, group)
        if old is not None and new == old:
            if old == fresh or self.existing != "skip":
                result.unchanged += 1
            else:
                result.skipped += 1
            return
        with whole.replacing(Path(target)) as file:
            file.write(new)
        if old is not None and self.existing == "append":
            result.appended += 1
        else:
            result.written += 1

    def _beside(self, old: bytes, fresh: bytes, group: list[Row]) -> bytes:
        return old if old == fresh else self.content.merged(old, group, self.existing)

    def _make_folder(self, folder: str) -> None:
        if folder == self._swept:
            return
        if self.place is not None:
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - likewise
        whole.sweep(Path(folder))
        self._swept = folder


def _read(target: str) -> bytes | None:
    """Return what is there; only a plain file may be replaced."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise Unreadable("it is a symbolic link" if stat.S_ISLNK(mode) else "it is not a file")
    with open(target, "rb") as file:  # noqa: PTH123 - likewise
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise Unreadable("it is larger than 16 MiB")
    return data
