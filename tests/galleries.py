"""Rows, small pictures and galleries for tests."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from llava_ollama.batch.thumbnails import Thumbnails
from llava_ollama.batch.work import Row
from llava_ollama.gallery import Gallery, build, scripts
from tests.rows import PLAIN

HOSTS = ("http://127.0.0.1:11434", "http://10.0.0.7:11434")
_ROW = replace(
    PLAIN,
    path="/nowhere/0001.jpg",
    sha256=None,
    text="A red square.",
    tokens=5,
    seconds=0.5,
    host=HOSTS[0],
    model_digest="ab" * 32,
)


def row(item: int = 1, **values: Any) -> Row:
    """Return an answer about picture `item`; a failed one has no size."""
    values = {"path": f"/nowhere/{item:04}.jpg", **values}
    if values.get("state", "done") != "done":
        nothing = {"text": "", "finish": None, "width": None, "height": None, "host": ""}
        values = {**nothing, **values}
    return replace(_ROW, item=item, **values)


def many(count: int) -> Iterator[Row]:
    """Yield answers of some length, no two alike."""
    for item in range(1, count + 1):
        words = f"A photo of thing {item} on a table, in {'red' if item % 2 else 'blue'} light"
        yield row(item, text=f"{words}, {'and more of it ' * (item % 9)}", host=HOSTS[item % 2])


def jpeg(colour: str, size: tuple[int, int] = (224, 168)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (640, 480)) -> str:
    """Write a picture; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(colour, size))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gallery(folder: Path, *rows: Row, title: str = "run1") -> Gallery:
    """Write a gallery below `folder`."""
    with Thumbnails(folder) as small:
        return build(rows, small, folder / "gallery", title=title)


def endless(folder: Path, count: int) -> Path:
    """Write a gallery of so many pictures that its answers are made in the browser."""
    made = gallery(folder, row(1), row(2))
    index = (made.folder / "data/index.js").read_text()
    index = index.replace('"pictures":2', f'"pictures":{count}')
    index = index.replace(f'"shard":{scripts.PICTURES}', f'"shard":{count}')
    (made.folder / "data/index.js").write_text(index)
    answer = "[[0, 0, `Answer ${n + 1}`, 0, 0, '', 5, 0.5, 0, 0]]"
    entry = f"[`/nowhere/${{n + 1}}.jpg`, '', 0, 640, 480, 0, {answer}]"
    pictures = f"gallery.pictures(1, Array.from({{length: {count}}}, (_, n) => {entry}))"
    (made.folder / "data/0001.js").write_text(pictures)
    return made.page
