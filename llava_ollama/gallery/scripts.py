"""From values to the scripts that hand them to the page.

Everything in them came from elsewhere: answers from a model, names from a disk. It goes out as
JSON, with what could end a script or a line of it escaped, and the page sets it as text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICTURES, THUMBNAILS = 1000, 32
"""How many a script has: 300 kB of answers, 250 kB of small pictures. A screen of pictures in any
order then reads some 10 MB, and a million pictures are 32,250 files in 32 folders."""
FOLDER = 1000
"""How many scripts of small pictures are in a folder."""

_ESCAPED = {"<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def pictures_file(number: int) -> str:
    """Return the name of a script of answers; the first is 1."""
    return f"data/{number:04}.js"


def thumbnails_file(number: int) -> str:
    """Return the name of a script of small pictures; the first is 1."""
    return f"thumbnails/{(number - 1) // FOLDER}/{number:04}.js"


def script(call: str, *values: Any) -> bytes:
    """Return a script that calls a function of the page with these values."""
    text = ",".join(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values
    )
    for sign, escape in _ESCAPED.items():
        text = text.replace(sign, escape)
    # Half a surrogate pair has no UTF-8.
    return f"gallery.{call}({text});\n".encode(errors="replace")


class Shards:
    """Writes values that come one after the other, so many to a script."""

    def __init__(self, folder: Path, call: str, size: int, name: Callable[[int], str]) -> None:
        self._folder = folder
        self._call = call
        self._size = size
        self._name = name
        self._values: list[Any] = []
        self._number = 0

    def add(self, value: Any) -> None:
        """Add one value."""
        self._values.append(value)
        if len(self._values) == self._size:
            self.flush()

    def flush(self) -> None:
        """Write what waits; a script without a value is left out."""
        values, self._values = self._values, []
        if not values:
            return
        self._number += 1
        if not any(values):
            return
        path = self._folder / self._name(self._number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(script(self._call, self._number, values))


def jpeg(data: bytes | None) -> str | None:
    """Return a small picture as it stands in a script."""
    return base64.b64encode(data).decode() if data else None
