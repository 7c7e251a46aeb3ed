"""`csv`: the columns of `jsonl`, for a spreadsheet, which may not take an answer for a formula."""

from __future__ import annotations

import csv
import io
import re
from typing import Any, BinaryIO

from llava_ollama.export.interface import Rows
from llava_ollama.export.jsonl import COLUMNS, columns

BEGINS = b'"path","id","prompt"'
_ACTS = re.compile("\\s*[=+\\-@\t\r＝＋－＠]")  # noqa: RUF001 - Excel takes the wide ones as well
"""https://owasp.org/www-community/attacks/CSV_Injection; white space before it, to be sure."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def fill(file: BinaryIO, rows: Rows) -> None:
    """Write a line of names, and all rows."""
    text = io.TextIOWrapper(
        file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True
    )
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(COLUMNS)
    for row in rows():
        writer.writerow([cell(value) for value in columns(row).values()])
    text.detach()


def cell(value: Any) -> Any:
    """Return a text without control characters; with a `'` before it where it would act."""
    if not isinstance(value, str):
        return value
    clean = _CONTROL.sub("", value)
    return f"'{clean}" if _ACTS.match(value) or _ACTS.match(clean) else clean
