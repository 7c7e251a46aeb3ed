"""`txt`: the caption beside the picture, as trainers of image models look for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llava_ollama.batch.work import Row
from llava_ollama.export.interface import Existing

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Captions:
    """A line for each answer, in the order of the questions."""

    def fresh(self, rows: Sequence[Row]) -> bytes | None:
        """Return the answers, without control characters."""
        said = (_CONTROL.sub("", row.text).strip() for row in rows)
        text = "\n".join(answer for answer in said if answer)
        return f"{text}\n".encode("utf-8", "replace") if text else None

    def merged(self, old: bytes, rows: Sequence[Row], existing: Existing) -> bytes:
        """Return the old caption, the new one, or both; twice the same is not appended."""
        fresh = self.fresh(rows) or b""
        if existing == "skip":
            return old
        if existing == "overwrite" or not old.strip():
            return fresh
        kept = old if old.endswith(b"\n") else old + b"\n"
        return old if f"\n{fresh.decode()}".encode() in b"\n" + kept else kept + fresh
