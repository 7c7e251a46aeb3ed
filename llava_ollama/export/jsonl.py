"""`jsonl`: one line a picture and question, with nothing left out; and what a row's columns are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from llava_ollama.batch.work import Row
from llava_ollama.export.interface import Rows

COLUMNS = {
    "path": str,
    "id": str,
    "prompt": str,
    "text": str,
    "state": str,
    "finish": str,
    "error": str,
    "tokens": int,
    "seconds": float,
    "host": str,
    "model_digest": str,
}
"""Name → type, the same in `jsonl`, `csv` and `parquet`."""
BEGINS = b'{"path": "'
_ENDS_LINES = re.compile("[\x7f-\x9f\u2028\u2029]")
"""What JSON allows in a text, and terminals or `str.splitlines` take for more than text."""


def columns(row: Row) -> dict[str, Any]:
    """Return a row by the names of `COLUMNS`."""
    named = {"id": row.custom_id, "finish": row.finish or ""}
    return {name: named.get(name, getattr(row, name, None)) for name in COLUMNS}


def line(document: Mapping[str, Any]) -> bytes:
    r"""Return a line of JSON.

    A byte of a name that is not UTF-8 is written as the command line's `--json` does it, as
    `\udc80` and up: `os.fsencode` of what a JSON reader makes of it is the name.
    """
    text = json.dumps(document, ensure_ascii=False)
    text = _ENDS_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def fill(file: BinaryIO, rows: Rows) -> None:
    """Write all rows."""
    file.writelines(line(columns(row)) for row in rows())
