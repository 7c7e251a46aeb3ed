"""`xmp`: description and keywords as photo managers read them, beside what others wrote there.

An answer in words is the description, `dc:description` in the language `x-default`. Of a structured
answer the text under `description` or `caption` is, and the list of texts under `tags`, `keywords`
or `subject` are the keywords, `dc:subject`. Several answers about a picture: a line each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from llava_ollama.batch.work import Row
from llava_ollama.export import packet
from llava_ollama.export.interface import Existing
from llava_ollama.export.sidecars import Unreadable

DESCRIPTION = ("description", "caption")
SUBJECT = ("tags", "keywords", "subject")
"""The keys of a structured answer that are read; the first that fits is taken."""
_NEVER = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 forbids or advises against: control characters, and lone surrogates."""
_EMPTY = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


@dataclass(frozen=True)
class Said:
    """What the answers about a picture come to."""

    description: str = ""
    subject: tuple[str, ...] = ()


class Metadata:
    """The content of an XMP sidecar."""

    def fresh(self, rows: Sequence[Row]) -> bytes | None:
        """Return a sidecar with nothing else in it."""
        found = said(rows)
        if not found.description and not found.subject:
            return None
        return packet.merge(_EMPTY, found.description, found.subject, "overwrite")

    def merged(self, old: bytes, rows: Sequence[Row], existing: Existing) -> bytes:
        """Return the sidecar with the answers in it, and the rest byte for byte as it was."""
        found = said(rows)
        try:
            return packet.merge(old, found.description, found.subject, existing)
        except packet.Broken as exc:
            raise Unreadable(str(exc)) from exc


def said(rows: Sequence[Row]) -> Said:
    """Return description and keywords."""
    lines: list[str] = []
    subject: dict[str, None] = {}
    for row in rows:
        text, words = _structured(row.text) if row.structured else (row.text, [])
        lines.append(clean(text))
        subject.update(dict.fromkeys(" ".join(clean(word).split()) for word in words))
    return Said("\n".join(filter(None, lines)), tuple(filter(None, subject)))


def clean(text: str) -> str:
    """Return `text` as XML can hold it."""
    return _NEVER.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _structured(text: str) -> tuple[str, list[str]]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return "", []
    if not isinstance(answer, dict):
        return "", []
    descriptions = [value for key in DESCRIPTION if isinstance(value := answer.get(key), str)]
    subjects = [value for key in SUBJECT if _are_texts(value := answer.get(key))]
    return next(iter(descriptions), ""), next(iter(subjects), [])


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
