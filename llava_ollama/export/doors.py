"""What all formats share of the disk: its errors, and tables that appear whole."""

from __future__ import annotations

import errno
import filecmp
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llava_ollama import whole
from llava_ollama.errors import LlavaOllamaError, NotEnoughSpace, UsageProblem
from llava_ollama.export.interface import Format, Result, Rows

FULL = {errno.ENOSPC, errno.EDQUOT}
_HINT = "Choose another folder with `-o`"


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Translate the disk's errors.

    Raises:
        NotEnoughSpace: it is full.
        LlavaOllamaError: it refuses.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in FULL:
            raise NotEnoughSpace(
                f"the disk of `{place}` is full", hint="Free some space, then export again"
            ) from exc
        raise LlavaOllamaError(
            f"`{place}` cannot be written: {exc.strerror or exc}", hint=_HINT
        ) from exc


def check_folder(place: Path) -> None:
    """See that `place` is a folder, or could be made one.

    Raises:
        UsageProblem: it is a file.
    """
    nearest = next((p for p in (place, *place.parents) if os.path.lexists(p)), place)
    if os.path.lexists(nearest) and not nearest.is_dir():
        raise UsageProblem(f"`{nearest}` is not a folder", hint=_HINT)


def check_ours(place: Path, begins: bytes) -> None:
    """See that a file that is to be replaced is an earlier export, or empty, or a link.

    A link is replaced, and what it leads to stays.

    Raises:
        UsageProblem: it begins otherwise.
    """
    if place.is_symlink():
        return
    try:
        with place.open("rb") as file:
            found = file.read(len(begins))
    except OSError:  # there is none, or whoever writes says what is wrong
        return
    if found and found != begins:
        raise UsageProblem(f"`{place}` is there already, and is no such export", hint=_HINT)


@dataclass(frozen=True)
class Table:
    """Rows in one file of a folder; an earlier export of this name is replaced."""

    format: Format
    folder: Path
    fill: Callable[[BinaryIO, Rows], None]
    begins: bytes
    """What tells an export from another file of its name."""

    def plan(self, rows: Rows) -> None:  # noqa: ARG002 - the seam's signature
        """See that the folder can be one, and has no file of the user's in this place."""
        check_folder(self.folder)
        check_ours(self._place, self.begins)

    @property
    def _place(self) -> Path:
        return self.folder / f"answers.{self.format}"

    def write(self, rows: Rows) -> Result:
        """Write the file."""
        place = self._place
        with writing(place):
            self.folder.mkdir(parents=True, exist_ok=True)
            whole.sweep(self.folder)
            part = whole.part_of(place)
            try:
                with part.open("xb") as file:
                    self.fill(file, rows)
                    whole.flush(file)
                return publish([(part, place)], Result(self.format))
            finally:
                part.unlink(missing_ok=True)


def publish(parts: list[tuple[Path, Path]], result: Result) -> Result:
    """Give finished parts their names, and count them; what says the same stays as it is."""
    for part, place in parts:
        result.files.append(str(place))
        if place.is_file() and not place.is_symlink() and _same(part, place):
            part.unlink()
            result.unchanged += 1
        else:
            part.replace(place)
            result.written += 1
    return result


def _same(one: Path, other: Path) -> bool:
    filecmp.clear_cache()
    return filecmp.cmp(one, other, shallow=False)
