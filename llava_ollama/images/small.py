"""From a picture that is prepared for a model to a small one for people."""

from __future__ import annotations

import io

from llava_ollama.images.pixels import PreparedPicture

LONGEST = 224
"""Pixels: sharp enough for a tile, and 5 to 8 kB as a JPEG file."""


def thumbnail(prepared: PreparedPicture) -> bytes:
    """Return a small JPEG file of a picture that is prepared.

    It is made from what the model sees, less the padding: 0.8 ms, from 12 million pixels 35 ms.
    """
    from PIL import PngImagePlugin

    width, height = prepared.original or (prepared.width, prepared.height)
    with PngImagePlugin.PngImageFile(io.BytesIO(prepared.data)) as image:
        box = _inside(prepared.width, prepared.height, width / height)
        scale = min(1.0, LONGEST / max(box[2] - box[0], box[3] - box[1]))
        size = max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale))
        small = image.convert("RGB").resize(size, box=box, reducing_gap=2.0)
    small.info = {}
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return file.getvalue()


def _inside(width: int, height: int, aspect: float) -> tuple[float, float, float, float]:
    """Return the box of a picture of this aspect (width / height) that fits in the middle."""
    inner = max(1.0, min(width, height * aspect)), max(1.0, min(height, width / aspect))
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    return left, top, left + inner[0], top + inner[1]
