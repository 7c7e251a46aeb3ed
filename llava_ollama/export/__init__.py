"""What was answered, in the forms in which others take it: made from a run's journal alone.

The same journal gives the same bytes. `export` does all of it; the formats are a file each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from llava_ollama.batch.work import Row
from llava_ollama.errors import UsageProblem
from llava_ollama.export import csv, jsonl
from llava_ollama.export.doors import Table
from llava_ollama.export.interface import Existing, Export, Format, Problem, Result, Rows
from llava_ollama.export.openai import OpenAI
from llava_ollama.export.parquet import Parquet
from llava_ollama.export.sidecars import Sidecars
from llava_ollama.export.targets import Naming
from llava_ollama.export.txt import Captions
from llava_ollama.export.xmp import Metadata
from llava_ollama.progress import SILENT, Reporter

__all__ = ["Existing", "Export", "Format", "Options", "Problem", "Result", "export", "make"]

_NAMED = 5
"""Prompts that a hint names."""
_OFTEN = 1000
"""Rows from one report of progress to the next."""
_LONG = 1.0
"""Seconds after which there are reports."""
_APART = "Rename one of them, or export `--format jsonl`, where each has a row"
_FULL_NAMES = "Leave out `--xmp-name stem`: sidecars then have the pictures' whole names"


@dataclass(frozen=True)
class Options:
    """What can be chosen about an export."""

    run: Path
    """The run's folder, where tables go by default."""
    place: Path | None = None
    """Where all goes instead; sidecars in the same tree as the pictures have."""
    existing: Existing = "skip"
    xmp_full_name: bool = True
    """`photo.jpg.xmp` as darktable and digiKam call it, else Adobe's `photo.xmp`."""
    prompt: str | None = None
    """Only the answers to this prompt."""
    total: int | None = None
    """How many rows there are, where that is known."""


def export(
    rows: Rows, formats: Sequence[Format], options: Options, reporter: Reporter = SILENT
) -> list[Result]:
    """Write the formats; what stands in the way of one is found before any is written.

    Raises:
        UsageProblem: two pictures would share a sidecar, the place is none, or no prompt is so.
        EngineUnavailable: a library is missing.
        LlavaOllamaError: a table cannot be written.
    """
    exports = [make(name, options) for name in dict.fromkeys(formats)]
    if (prompt := options.prompt) is not None:
        _check_prompt(rows, prompt)
        rows = _only(rows, prompt)
    total = options.total if prompt is None else None
    for one in exports:
        one.plan(_counted(rows, f"planning {one.format}", reporter, total))
    return [
        one.write(_counted(rows, f"exporting {one.format}", reporter, total)) for one in exports
    ]


def make(name: Format, options: Options) -> Export:
    """Return a format."""
    folder = options.place or options.run
    match name:
        case "txt":
            naming = Naming(".txt", full=False)
            return _sidecars(name, options, naming=naming, hint=_APART)
        case "xmp":
            naming = Naming(".xmp", full=options.xmp_full_name)
            hint = _APART if options.xmp_full_name else _FULL_NAMES
            return _sidecars(name, options, naming=naming, hint=hint)
        case "jsonl":
            return Table(name, folder, jsonl.fill, jsonl.BEGINS)
        case "csv":
            return Table(name, folder, csv.fill, csv.BEGINS)
        case "parquet":
            return Parquet(folder)
        case "openai":
            return OpenAI(folder)
        case _:
            assert_never(name)


def _sidecars(name: Format, options: Options, *, naming: Naming, hint: str) -> Sidecars:
    content = Captions() if name == "txt" else Metadata()
    return Sidecars(name, content, naming, options.place, options.existing, hint)


def _only(rows: Rows, prompt: str) -> Rows:
    return lambda: (row for row in rows() if row.prompt == prompt)


def _check_prompt(rows: Rows, prompt: str) -> None:
    asked: dict[str, None] = {}
    for row in rows():
        if row.prompt == prompt:
            return
        if len(asked) < _NAMED:
            asked[row.prompt] = None
    known = ", ".join(f"`{one}`" for one in asked)
    hint = f"It asked {known}" if known else "It has no pictures yet"
    raise UsageProblem(f"the run never asked `{prompt}`", hint=hint)


def _counted(rows: Rows, task: str, reporter: Reporter, total: int | None) -> Rows:
    """Return the rows with progress: a second is over before any is shown."""

    def counted() -> Iterator[Row]:
        begun, told = time.monotonic(), False
        try:
            for number, row in enumerate(rows(), 1):
                yield row
                if number % _OFTEN:
                    continue
                if told:
                    reporter.advanced(task, _OFTEN)
                elif time.monotonic() - begun > _LONG:
                    told = True
                    reporter.counting(task, total)
                    reporter.advanced(task, number)
        finally:
            if told:
                reporter.finished(task)

    return counted
