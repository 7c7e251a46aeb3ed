"""Takes any picture source to the pixels that the model was trained on, or refuses it clearly.

Runtimes ignore EXIF, alpha and profiles, place and filter a picture by ways of their own, and old
ones die of WebP, TIFF or bytes that they cannot decode. So every picture is read here, within
limits, decoded, whole, by `pixels`, and made by `square` what training made of it.
"""

from __future__ import annotations

from llava_ollama.images import pixels, signatures, sources
from llava_ollama.images.pixels import MAX_PIXELS, Decode, Preparation, PreparedPicture
from llava_ollama.images.signatures import SUFFIXES, looks_like_picture
from llava_ollama.images.sources import MAX_BYTES, Source, is_one
from llava_ollama.images.square import CLIP_L_SIDE, Vision

__all__ = [
    "CLIP_L_SIDE",
    "MAX_BYTES",
    "MAX_PIXELS",
    "SUFFIXES",
    "Decode",
    "PreparedPicture",
    "Source",
    "Vision",
    "is_one",
    "looks_like_picture",
    "prepare",
]


def prepare(
    source: Source,
    vision: Vision | int,
    *,
    decode: Decode = "exact",
    as_trained: bool = False,
    called: str = "",
) -> PreparedPicture:
    """Return the picture as the model sees it, or, with `native`, as an engine takes it.

    `vision` is what the model sees, or only the side of its square in pixels. By `exact` the
    picture is padded to a square with `vision`'s mean colour and resized by Pillow's bicubic
    filter: from its upright RGB pixels on, the bits are those of training. `fast` decodes a JPEG
    file at a half, a quarter or an eighth of its size first, where twice the square is left.
    `native` keeps the aspect, only shrinks what has a side over twice the square, and leaves the
    rest to the engine.

    Training made a picture RGB by Pillow's `convert("RGB")` alone. Here EXIF's orientation is
    undone, transparency lies on white, greys of 16 bits and floats are scaled, not cut off, and
    CMYK is converted by its profile; `as_trained` leaves all that, for evaluations.

    `called` stands for the picture in messages, where its source does not say.

    Raises:
        ImageError: it is missing, no picture, damaged, or refused for its size.
        UsageProblem: there is no such `decode`, or no such square.
    """
    vision = vision if isinstance(vision, Vision) else Vision(vision)
    how = Preparation(vision, decode, as_trained)
    picture, name = sources.read(source)
    name = called or name
    if not isinstance(picture, bytes):
        return pixels.from_image(picture, name, how)
    return pixels.from_file(signatures.kind_of(picture, name), picture, name, how)
