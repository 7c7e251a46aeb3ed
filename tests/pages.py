"""The page about pictures: its figures and its pair of pictures, made and compared.

python -m tests.pages            # fail when one of them is stale
python -m tests.pages --write    # make them anew (`make pages`)
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ollama.images import prepare
from llava_ollama.tiny.shapes import Shape, photo
from tests import photos

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "pictures.md"
SENT, RAW, SEEN = DOCS / "sent.jpg", DOCS / "unturned.png", DOCS / "seen.png"
SHAPE = Shape("green", "triangle", "white")
SIDE = 336
_BEGIN, _END = "<!-- begin difference -->\n", "<!-- end difference -->"
_SIZES = {2: (1500, 1125), 4: (2700, 2025), 8: (5400, 4050)}
"""Photos that `fast` decodes at a half, a quarter and an eighth of their size."""


def difference() -> str:
    """Return the table of what `fast` changes, in levels of 255."""
    rows = ["| a photo of | decoded at | mean difference | largest |", "|---|---|---|---|"]
    for times, (width, height) in _SIZES.items():
        data = photos.jpeg(photos.photo(width, height))
        exact, fast = (
            np.asarray(Image.open(io.BytesIO(prepare(data, SIDE, decode=decode).data))).astype(int)
            for decode in ("exact", "fast")
        )
        apart = abs(exact - fast)
        rows.append(
            f"| {width} x {height} pixels | 1/{times} | {apart.mean():.2f} | {apart.max()} |"
        )
    return "\n".join(rows) + "\n"


def text() -> str:
    """Return the page as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    return page[: page.index(_BEGIN) + len(_BEGIN)] + difference() + page[page.index(_END) :]


def pair() -> bytes:
    """Return the photo of the README, as a phone writes it that is held upright."""
    return photo(SHAPE, seed=3, width=360, height=480)


def seen(*, as_trained: bool) -> bytes:
    """Return what the model sees of it, with and without what is done here beyond training."""
    return prepare(SENT, SIDE, as_trained=as_trained).data


def write() -> None:
    DOCS.mkdir(exist_ok=True)
    SENT.write_bytes(pair())
    RAW.write_bytes(seen(as_trained=True))
    SEEN.write_bytes(seen(as_trained=False))
    PAGE.write_text(text(), encoding="utf-8")


def check() -> list[str]:
    """Return what is stale; pictures are compared by their pixels."""
    sound = {
        PAGE: text() == PAGE.read_text(encoding="utf-8"),
        SENT: _pixels(pair()) == _pixels(SENT.read_bytes()),
        RAW: _pixels(seen(as_trained=True)) == _pixels(RAW.read_bytes()),
        SEEN: _pixels(seen(as_trained=False)) == _pixels(SEEN.read_bytes()),
    }
    return [str(path.relative_to(DOCS.parent)) for path, right in sound.items() if not right]


def _pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).tobytes()


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    elif stale := check():
        sys.stderr.write(f"{', '.join(stale)} is stale: run `make pages`\n")
        raise SystemExit(1)
