"""The page about pictures: its figures and its pair of pictures, made and compared.

python -m tests.pages            # fail when one of them is stale
python -m tests.pages --write    # make them anew (`make pages`)
"""

from __future__ import annotations

import hashlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ollama import Llava
from llava_ollama.batch.thumbnails import Thumbnails, thumbnail
from llava_ollama.batch.work import Row
from llava_ollama.gallery import build
from llava_ollama.images import prepare
from llava_ollama.tiny.shapes import Shape, photo
from tests import chromium, photos
from tests.chromium import Chromium
from tests.drawn import one_shape_pictures
from tests.galleries import row

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "pictures.md"
GALLERY = DOCS / "gallery.png"
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


def gallery() -> bytes | None:
    """Return a picture of a gallery of drawn pictures that the tiny model describes.

    None where there is no Chromium. Fonts and browsers differ: compare it by `looks_like`.
    """
    program = chromium.find()
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as name, Llava.embedded("tiny-llava", threads=1) as llava:
        folder = Path(name)
        with Thumbnails(folder) as small:
            page = build(
                _described(folder, llava, small), small, folder / "page", title="run1"
            ).page
        with Chromium(program, folder / "profile") as browser:
            browser.size(1120, 700)
            browser.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
            browser.open(page)
            browser.wait("document.querySelectorAll('.thumb img').length > 7")
            browser.run(
                "Promise.all([...document.querySelectorAll('.thumb img')]"
                ".map((image) => image.decode())).then(() => null)"
            )
            return browser.screenshot()


def _described(folder: Path, llava: Llava, small: Thumbnails) -> Iterator[Row]:
    for number, (image, _) in enumerate(one_shape_pictures(16, 7)):
        name = f"/pictures/IMG_{number + 1:04}.png"
        if number == 6:
            told = f"`{name}` is cut off: it ends too early"
            yield row(number, path=name, state="failed", error_kind="picture", error=told)
            continue
        image.save(folder / "one.png")
        prepared = prepare(folder / "one.png", SIDE)
        sha256 = hashlib.sha256(prepared.data).hexdigest()
        small.put(sha256, thumbnail(prepared))
        answer = llava.ask(folder / "one.png", "Describe this image", options={"temperature": 0})
        yield row(number, path=name, sha256=sha256, text=answer.text)


def looks_like(one: bytes, other: bytes) -> bool:
    """Return whether two pictures are alike from some distance: fonts and their edges differ."""
    far, away = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((56, 35))).astype(int)
        for data in (one, other)
    )
    return bool(abs(far - away).mean() < 6)


def write() -> None:
    DOCS.mkdir(exist_ok=True)
    if (picture := gallery()) is not None:
        GALLERY.write_bytes(picture)
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
