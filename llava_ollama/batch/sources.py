"""Finds pictures, one after the other: in folders, by lists of names, and in request files.

Nothing is kept but where it has been: a million names cost no more memory than some thousand. What
is no picture is an entry with its reason, so that the journal has it; what was not looked at at
all is counted.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from itertools import islice
from pathlib import Path

from llava_ollama.batch.asking import GREEDY
from llava_ollama.batch.journal.changes import Entry
from llava_ollama.batch.requests import LONGEST_LINE, Defaults, parse, read_source
from llava_ollama.batch.work import Ask, State
from llava_ollama.errors import UsageProblem
from llava_ollama.images import SUFFIXES

__all__ = ["REQUESTS", "Defaults", "Found", "Sources", "read_source"]

REQUESTS = frozenset({".jsonl", ".ndjson"})
_SIDECARS = frozenset({".txt", ".xmp", ".caption"})
_SORTED = 50_000
"""Names of one folder that are sorted at a time; a larger one comes in several sorted parts."""
_TOLD = 20
_PIECE = 1 << 16


@dataclass
class Found:
    """What is no picture, and what was not looked at; it grows while a source is read."""

    skipped: int = 0
    """Entries that are no pictures."""
    hidden: int = 0
    """Files and folders whose name begins with a dot."""
    gone: int = 0
    """Named in a list or request file, and not there."""
    sidecars: int = 0
    """Texts and XMP files beside the picture that they are about."""
    unreadable: int = 0
    """Folders, and request files that end in an error."""
    told: list[str] = field(default_factory=list)
    """The first of them, each with its reason."""
    seen_before: int = 0
    """Links to folders that were looked at by another way."""

    def refuse(self, path: str, exc: OSError) -> None:
        """Count what cannot be read."""
        self.unreadable += 1
        if len(self.told) < _TOLD:
            self.told.append(f"`{path}` cannot be read: {_reason(exc)}")


class Sources:
    """What a user named, to be iterated over once, in any thread."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]] = (),
        *,
        lists: Sequence[str | os.PathLike[str] | BufferedIOBase] = (),
        asks: tuple[Ask, ...] = (),
        leave_out: Sequence[Path] = (),
    ) -> None:
        """Name folders, pictures and request files, and `lists` of such names.

        `asks` is what is asked where a line of a request file does not say; `leave_out` are
        folders to pass by, such as the run's own.

        Raises:
            UsageProblem: one of them is not there, or to be left out as well.
        """
        self.found = Found()
        self._paths = [_existing(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - `..`
        self._lists = [
            one if isinstance(one, BufferedIOBase) else _existing(os.fspath(one)) for one in lists
        ]
        options = asks[0].options if asks else GREEDY
        self._defaults = Defaults(asks, options)
        self._visited: set[tuple[int, int]] = set()
        self._links: deque[str] = deque()
        self._leave_out = leave_out
        for folder in leave_out:
            if any(_are_same(folder, path) for path in self._paths):
                raise UsageProblem(
                    f"`{folder}` is both the run and a source",
                    hint="Name a folder of its own for the run: `-o run1`",
                )

    def __iter__(self) -> Iterator[Entry]:
        for folder in self._leave_out:  # not earlier: a run's own may just have been made
            with suppress(OSError):
                self._visited.add(_identity(os.fspath(folder)))
        for entry in self._all():
            self.found.skipped += entry.state == "skipped"
            if entry.state == "gone":
                self.found.gone += 1
            yield entry

    def _all(self) -> Iterator[Entry]:
        for path in self._paths:
            yield from self._any(path)
        for one in self._lists:
            yield from self._listed(one)
        # By now every folder has been found by its own name where it has one.
        while self._links:
            yield from self._walk(self._links.popleft())

    def _any(self, path: str) -> Iterator[Entry]:
        """Yield what is behind a name that was given."""
        if os.path.isdir(path):  # noqa: PTH112 - a path that is not UTF-8 stays text
            yield from self._walk(path)
        elif _suffix(path) in REQUESTS:
            yield from self._requests(path)
        else:
            yield _file(Entry(path))

    def _listed(self, names: str | os.PathLike[str] | BufferedIOBase) -> Iterator[Entry]:
        """Yield what is behind the names in a list; relative ones count from where we are."""
        if isinstance(names, BufferedIOBase):
            for name in _names(names):
                yield from self._any(os.path.abspath(os.fsdecode(name)))  # noqa: PTH100
            return
        try:
            with Path(names).open("rb") as file:
                yield from self._listed(file)
        except OSError as exc:
            self.found.refuse(os.fspath(names), exc)

    def _requests(self, path: str) -> Iterator[Entry]:
        try:
            with Path(path).open("rb") as file:
                status = os.fstat(file.fileno())
                for offset, line in _lines(file):
                    entry = parse(path, offset, line, self._defaults)
                    if entry.offset is None:
                        yield _file(entry)
                    else:
                        yield _with(entry, status)
        except OSError as exc:
            self.found.refuse(path, exc)

    def _walk(self, folder: str) -> Iterator[Entry]:
        """Yield what is in a folder and those below; links to folders wait for the end."""
        left = [folder]
        while left:
            current = left.pop()
            if not self._is_new(current):
                continue
            below: list[str] = []
            try:
                with os.scandir(current) as entries:
                    while part := sorted(islice(self._visible(entries), _SORTED)):
                        yield from self._part(current, part, below)
            except OSError as exc:
                self.found.refuse(current, exc)
            left += reversed(below)

    def _visible(self, entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, str]]:
        """Yield names with what they are; entries themselves would take five times the memory."""
        for entry in entries:
            if entry.name.startswith("."):
                self.found.hidden += 1
            else:
                yield entry.name, _kind(entry)

    def _part(
        self, folder: str, part: Sequence[tuple[str, str]], below: list[str]
    ) -> Iterator[Entry]:
        about = _pictures(part)
        for name, kind in part:
            path = os.path.join(folder, name)  # noqa: PTH118 - a million times
            if kind == "folder":
                below.append(path)
            elif kind == "link to a folder":
                self._links.append(path)
            elif _suffix(name) in _SIDECARS and name.rpartition(".")[0] in about:
                self.found.sidecars += 1
            else:
                yield _file(Entry(path))

    def _is_new(self, folder: str) -> bool:
        try:
            key = _identity(folder)
        except OSError as exc:
            self.found.refuse(folder, exc)
            return False
        if key in self._visited:
            self.found.seen_before += 1
            return False
        self._visited.add(key)
        return True


def _are_same(one: Path, other: str) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121 - a path that is not UTF-8 stays text
    except OSError:
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 - a path that is not UTF-8 stays text
    return status.st_dev, status.st_ino


def _pictures(part: Sequence[tuple[str, str]]) -> set[str]:
    """Return what sidecars of a folder's pictures are called, without their own extension."""
    if not any(_suffix(name) in _SIDECARS for name, _ in part):
        return set()
    pictures = [name for name, _ in part if _suffix(name) in SUFFIXES]
    return {*pictures, *(name.rpartition(".")[0] for name in pictures)}


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if not entry.is_dir():
            return "file"
        return "link to a folder" if entry.is_symlink() else "folder"
    except OSError:  # a loop of links
        return "file"


def _file(entry: Entry) -> Entry:
    """Return the entry with what its file's state says of it."""
    suffix = _suffix(entry.path)
    if entry.state == "pending" and suffix not in SUFFIXES:
        named = f"`{suffix}` is not the extension" if suffix else "it has no extension"
        return _as(entry, "skipped", f"{named} of a picture")
    try:
        status = os.stat(entry.path)  # noqa: PTH116 - a million times
    except (OSError, ValueError) as exc:
        return _as(entry, "gone", _reason(exc))
    if not stat.S_ISREG(status.st_mode):
        return _as(entry, "skipped", "it is not a file")
    return _with(entry, status)


def _as(entry: Entry, state: State, reason: str) -> Entry:
    return replace(entry, state=state, reason=reason)


def _with(entry: Entry, status: os.stat_result) -> Entry:
    return replace(entry, size=status.st_size, mtime_ns=status.st_mtime_ns)


def _names(file: BufferedIOBase) -> Iterator[bytes]:
    """Yield the names in a list: between NULs where its beginning has one, else lines."""
    separator, rest = b"", b""
    while piece := file.read1(_PIECE):
        rest += piece
        if not separator:
            separator = next((one for one in (b"\0", b"\n") if one in rest), b"")
        if separator:
            *whole, rest = rest.split(separator)
            yield from filter(None, map(_line if separator == b"\n" else bytes, whole))
        # No path is as long as this: what is left of it is told as gone.
        rest = rest[:_PIECE]
    if name := rest if separator == b"\0" else _line(rest):
        yield name


def _line(name: bytes) -> bytes:
    return name.removesuffix(b"\r")


def _lines(file: BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that say something, each with the byte at which it begins."""
    offset = 0
    while line := file.readline(LONGEST_LINE):
        begun, offset = offset, offset + len(line)
        if len(line) == LONGEST_LINE:
            while not line.endswith(b"\n") and (line := file.readline(_PIECE)):
                offset += len(line)
            line = b""  # what follows tells that it is not JSON
            yield begun, line
        elif line.strip():
            yield begun, line


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - a million times


def _existing(path: str) -> str:
    try:
        os.stat(path)  # noqa: PTH116 - a path that is not UTF-8 stays text
    except (OSError, ValueError) as exc:
        raise UsageProblem(
            f"`{path}` cannot be read: {_reason(exc)}",
            hint="Name a folder, a picture or a request file (`.jsonl`) that is there",
        ) from exc
    return path


def _reason(exc: Exception) -> str:
    return (getattr(exc, "strerror", None) or str(exc)).lower()
