"""`openai`: batch output files, the answers to a batch of `/v1/chat/completions` requests.

Every row has a line: an answer, or an error with its kind, or the state, as its code. Two things
differ, as the journal does not have them: `created` is 0, and `usage` counts the answer only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from llava_ollama import whole
from llava_ollama.batch.work import Row
from llava_ollama.export.doors import check_folder, check_ours, publish, writing
from llava_ollama.export.interface import Format, Result, Rows
from llava_ollama.export.jsonl import line

_BEGINS = b'{"id": "batch_req_'
MOST, LARGEST = 50_000, 200_000_000
"""Requests and bytes of a file: https://platform.openai.com/docs/guides/batch"""


@dataclass(frozen=True)
class OpenAI:
    """As many files as the limits ask for; they get their names together, when all are whole."""

    folder: Path
    most: int = MOST
    largest: int = LARGEST
    format: Format = "openai"

    def plan(self, rows: Rows) -> None:  # noqa: ARG002 - the seam's signature
        """See that the folder can be one, and has no files of the user's in these places."""
        check_folder(self.folder)
        for place in self.folder.glob("openai-[0-9][0-9][0-9][0-9].jsonl"):
            check_ours(place, _BEGINS)

    def write(self, rows: Rows) -> Result:
        """Write the files, and remove what a longer export had after them."""
        parts: list[tuple[Path, Path]] = []
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            whole.sweep(self.folder)
            try:
                self._fill(rows, parts)
                result = publish(parts, Result(self.format))
            finally:
                for part, _ in parts:
                    part.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                for number in range(len(parts), 10_000):
                    self._place(number).unlink()
        return result

    def _fill(self, rows: Rows, parts: list[tuple[Path, Path]]) -> None:
        """Write the parts, each noted before it is made."""
        lines = _lines(rows)
        first: bytes | None = next(lines, b"")
        while first is not None:
            place = self._place(len(parts))
            parts.append((whole.part_of(place), place))
            with parts[-1][0].open("xb") as file:
                first = self._fill_one(file, first, lines)
                whole.flush(file)

    def _fill_one(self, file: Any, first: bytes, lines: Iterator[bytes]) -> bytes | None:
        """Write lines up to the limits; return the one that no longer fits, or None at the end."""
        file.write(first)
        count, size = 1, len(first)
        for text in lines:
            if count == self.most or size + len(text) > self.largest:
                return text
            file.write(text)
            count, size = count + 1, size + len(text)
        return None

    def _place(self, number: int) -> Path:
        return self.folder / f"openai-{number + 1:04}.jsonl"


def _lines(rows: Rows) -> Iterator[bytes]:
    for _, group in groupby(rows(), key=lambda row: row.item):
        together = list(group)
        for row in together:
            known = row.custom_id or row.path
            yield line(_document(row, known if len(together) == 1 else f"{known}#{row.ask}"))


def _document(row: Row, custom_id: str) -> dict[str, Any]:
    key = hashlib.sha256(f"{row.item} {row.ask}".encode()).hexdigest()[:24]
    answered = row.state == "done"
    response = {"status_code": 200, "request_id": f"req_{key}", "body": _body(row, key)}
    code = row.error_kind or row.state
    return {
        "id": f"batch_req_{key}",
        "custom_id": custom_id,
        "response": response if answered else None,
        "error": None if answered else {"code": code, "message": row.error or f"it is {row.state}"},
    }


def _body(row: Row, key: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": row.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": row.finish}
    return {
        "id": f"chatcmpl-{key}",
        "object": "chat.completion",
        "created": 0,
        "model": row.model_digest,
        "choices": [choice],
        "usage": {
            "prompt_tokens": 0,
            "completion_tokens": row.tokens,
            "total_tokens": row.tokens,
        },
    }
