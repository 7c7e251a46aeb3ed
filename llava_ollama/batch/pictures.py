"""From an item to what is sent of it: its file is read once, hashed, and made what a model sees."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava_ollama import images
from llava_ollama.batch.requests import read_source
from llava_ollama.batch.work import Item, Seen
from llava_ollama.errors import ImageError
from llava_ollama.images import PreparedPicture, Vision

Thumbnail = Callable[[PreparedPicture], bytes]
"""Makes a small JPEG file of a picture that upright is so wide and so high."""


@dataclass(frozen=True)
class Ready:
    """A picture that can be asked about, and what is noted of its file."""

    picture: PreparedPicture
    seen: Seen


def ready(item: Item, vision: Vision, thumbnail: Thumbnail | None = None) -> Ready:
    """Read, hash and prepare the picture of `item`.

    Raises:
        ImageError: it cannot be read or decoded, or is being written at this moment.
    """
    data, size, mtime_ns = _bytes_of(item)
    name = item.custom_id or item.path
    picture = images.prepare(data, vision, called=f"`{name}`")
    width, height = picture.original or (picture.width, picture.height)
    seen = Seen(
        item=item.id,
        sha256=hashlib.sha256(data).hexdigest(),
        size=size,
        mtime_ns=mtime_ns,
        width=width,
        height=height,
        thumbnail=thumbnail(picture) if thumbnail else None,
    )
    return Ready(picture, seen)


def _bytes_of(item: Item) -> tuple[bytes, int, int]:
    """Return the bytes of the picture file, their number, and when it was changed."""
    path = Path(item.path)
    before = _changed(path)
    data = read_source(item)
    if item.offset is not None:
        return data, len(data), before[1]
    if _changed(path) == before and len(data) == before[0]:
        return data, *before
    error = ImageError(f"`{path}` is being written", hint="It is read again later")
    raise error from BlockingIOError(errno.EAGAIN, "it changed while it was read")


def _changed(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0  # whoever opens it says why
    return status.st_size, status.st_mtime_ns
