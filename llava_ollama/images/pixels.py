"""From a picture file's bytes, or a PIL image, to the PNG file that is sent, or a clear refusal.

It reads only the formats named in `signatures`, each by its own reader; what Pillow raises and
warns of stays inside.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import struct
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from llava_ollama.errors import ImageError, UsageProblem
from llava_ollama.images import colours, square
from llava_ollama.images.colours import DAMAGE
from llava_ollama.images.square import Vision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

MAX_PIXELS = 200_000_000
MAX_DECODED = 1_000_000_000
"""Bytes that pixels may take while they are decoded and converted, as `_cost` counts them.

The largest allowed then peaked at (MB, whole process): 200 M RGB PNG 808, 76 M progressive JPEG
743, 83 M turned TIFF 649, 62 M RGBA PNG 723, 50 M 16-bit PNG 684, 50 M WebP 775.
"""
MAX_SIDE = 1_000_000  # Pillow keeps a pointer for each row
MAX_COUNTED = 20_000  # frames

_AGAIN = "Copy or download it again"
_SMALLER = "Make it smaller first"
_SPARE = 65_536  # bytes that a file sent as it is may have beyond 4 a pixel
# EXIF orientations other than upright: which `Image.Transpose` undoes each.
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}

# One picture at a time: a large one's memory is then taken once, and the filter on Pillow's
# warnings, which Python keeps per process, is put back in the right order.
_ONE_AT_A_TIME = threading.Lock()

Decode = Literal["exact", "fast", "native"]
"""How a picture is decoded: to the pixels of training, from a JPEG's reduced scale where that is
enough, or only as far as the engine needs it, which then pads and resizes it by itself."""


@dataclass(frozen=True)
class Preparation:
    """For which eyes a picture is prepared, and how.

    Raises:
        UsageProblem: there is no such `decode`.
    """

    vision: Vision
    decode: Decode = "exact"
    as_trained: bool = False

    def __post_init__(self) -> None:
        if self.decode not in get_args(Decode):
            raise UsageProblem(
                f"`{self.decode}` is no way to decode a picture",
                hint=f"Ways are {', '.join(get_args(Decode))}",
            )

    @property
    def most(self) -> int:
        """The longest side, in pixels, of what an engine gets from `native` and `fast` decodes."""
        return 2 * self.vision.image_size


@dataclass(frozen=True)
class PreparedPicture:
    """A whole PNG file, RGB and upright, its size in pixels, and what was done to it.

    `steps` are all that was done, `notes` those that a person may not expect.
    """

    data: bytes
    width: int
    height: int
    notes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    original: tuple[int, int] | None = None
    """Width and height in pixels of the upright picture that it was made of."""


def from_file(kind: str, data: bytes, name: str, how: Preparation) -> PreparedPicture:
    """Return the picture in the file `data` of this `kind`, as `how` says.

    A PNG file that has the right size, and that every decoder reads alike, keeps its bytes.

    Raises:
        ImageError: it is no picture, damaged, or too large; `name` stands for it in the message.
    """
    with _decoding(name, kind):
        image = _open(kind, data)
        _check_size(image, name)
        # Not a JPEG: of 336 mutated ones that Pillow accepts, llama.cpp's decoder refused 36, and
        # bytes that it cannot decode kill the runner of Ollama 0.24.
        if kind == "PNG" and _is_right(image.size, how) and _is_plain(image, data):
            image.load()
            if _orientation(image) not in _TURNS:
                return PreparedPicture(data, *image.size, original=image.size)
        return _remade(image, name, how, data)


def from_image(image: Image.Image, name: str, how: Preparation) -> PreparedPicture:
    """Return a PIL image as `from_file` returns a file; the image stays as it was.

    Raises:
        ImageError: it cannot be decoded, has no pixels or too many.
    """
    with _decoding(name, ""):
        return _remade(image, name, how)


# Decoding


@contextlib.contextmanager
def _decoding(name: str, kind: str) -> Iterator[None]:
    """Silence Pillow's warnings, and make one error of all that it raises on hostile files."""
    from PIL import Image

    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    except (MemoryError, Image.DecompressionBombError) as exc:
        raise ImageError(f"{name} needs too much memory to be decoded", hint=_SMALLER) from exc
    except DAMAGE as exc:
        if "truncated" in str(exc).lower():
            raise ImageError(f"{name} is cut off: it ends too early", hint=_AGAIN) from exc
        as_kind = f" as {kind}" if kind else ""
        raise ImageError(f"{name} is damaged: it cannot be decoded{as_kind}", hint=_AGAIN) from exc


def _open(kind: str, data: bytes) -> Image.Image:
    """Read the header of a picture.

    Each reader is called by itself: `Image.open` imports many others, and warns about and refuses
    sizes by a limit that belongs to the whole process.
    """
    stem = kind if kind == "WebP" else kind.capitalize()  # as in `PngImagePlugin.PngImageFile`
    reader = getattr(importlib.import_module(f"PIL.{stem}ImagePlugin"), f"{stem}ImageFile")
    image: Image.Image = reader(io.BytesIO(data))
    return image


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    limit = min(MAX_PIXELS, MAX_DECODED // _cost(image))
    if width * height > limit:
        most = f"{limit // 1_000_000} million"
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the {most} that are decoded",
            hint=_SMALLER,
        )
    if max(width, height) > MAX_SIDE:
        raise MemoryError
    if not width * height:
        raise ImageError(f"{name} has no pixels: {width} x {height}", hint="Pass another picture")


def _cost(image: Image.Image) -> int:
    """Return the bytes that decoding and converting takes at most for a pixel, as measured."""
    later = 8 if image.info.get("progressive") else 0  # all coefficients are kept to the end
    if image.mode == "F" or image.mode.startswith("I") or image.format == "WEBP":
        return 20
    if image.has_transparency_data:
        return 16
    if image.format == "TIFF":
        return 12
    return later + (5 if image.mode in {"RGB", "L", "1", "P"} else 8)


def _is_right(size: tuple[int, int], how: Preparation) -> bool:
    if how.decode == "native":
        return max(size) <= how.most
    return size == (how.vision.image_size, how.vision.image_size)


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Return whether a PNG can be sent as it is, if upright: 8-bit RGB, one frame, no alpha."""
    usual = len(data) <= image.width * image.height * 4 + _SPARE
    return image.mode == "RGB" and usual and _has_plain_chunks(data)


def _has_plain_chunks(data: bytes) -> bool:
    """Return whether a PNG has 8 bits and nothing that simpler decoders stumble over.

    They know three critical chunks here, drop what `tRNS` says, and do not know `acTL`.
    """
    position = 8
    while position + 8 <= len(data):
        length, chunk = struct.unpack_from(">I4s", data, position)
        if chunk == b"IEND":
            return data[24] == 8  # noqa: PLR2004 - the bit depth
        if chunk in {b"tRNS", b"acTL"} or (
            chunk[:1].isupper() and chunk not in {b"IHDR", b"PLTE", b"IDAT"}
        ):
            return False
        position += length + 12
    return False


# Mending


def _remade(image: Image.Image, name: str, how: Preparation, data: bytes = b"") -> PreparedPicture:
    """Decode `image` and write it anew: upright, RGB, and as large as `how` says."""
    _check_size(image, name)
    notes = [*_frame_note(image, data)]
    turned = getattr(image, "tag_v2", {}).get(0x0112) in _TURNS  # and a TIFF's reader turns it
    # Not an image of the caller's: it would stay small.
    whole = image.size
    reduced = [*_reduced(image, how)] if how.decode == "fast" and data else []
    image.load()
    whole = whole if reduced else image.size  # a TIFF's reader has turned it
    turn = None if how.as_trained else _TURNS.get(cast("int", _orientation(image)))
    if turned or turn is not None:
        notes.append("turned by its EXIF orientation")
    pixels, changes = (colours.as_trained(image), []) if how.as_trained else colours.rgb(image)
    if how.decode == "native":
        final, sized = _bounded(pixels, turn, how.most)
    else:
        final, sized = square.seen(pixels, turn, how.vision, name)
    steps = (*notes, *reduced, *changes, *sized)
    return PreparedPicture(
        _png(final),
        *final.size,
        notes=tuple(notes),
        steps=steps,
        original=square.upright(whole, turn),
    )


def _reduced(image: Image.Image, how: Preparation) -> Iterator[str]:
    """Have a JPEG decoded at a half, a quarter or an eighth of its size, where that is enough."""
    times = max(image.size) // how.most
    if image.format != "JPEG" or times <= 1:
        return
    before = image.size
    image.draft("", (max(1, before[0] // times), max(1, before[1] // times)))
    if image.size != before:
        yield f"decoded at {image.width} x {image.height} of {before[0]} x {before[1]} pixels"


def _bounded(image: Image.Image, turn: int | None, longest: int) -> tuple[Image.Image, list[str]]:
    """Return `image` upright, shrunk where a side is over `longest`."""
    from PIL import Image

    done = []
    scale = longest / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        done.append(f"shrunk to {longest} pixels at its longest side")
    if turn is not None:  # now that it is small
        image = image.transpose(Image.Transpose(turn))
    return image, done


def _orientation(image: Image.Image) -> object:
    """Return what EXIF says of a loaded picture; broken EXIF does not cost whole pixels."""
    try:
        return image.getexif().get(0x0112)
    except DAMAGE:
        return None


def _frame_note(image: Image.Image, data: bytes) -> Iterator[str]:
    # Counting takes 20 us for each frame of a GIF, which has a comma; and in a TIFF, where each is
    # looked for among all before it, the square of their number.
    several = (image.format == "TIFF" and len(data) > 1 << 16) or (
        image.format == "GIF" and (len(data) > 16 << 20 or data.count(b",") > MAX_COUNTED)
    )
    shown = image.tell()
    if several:
        if getattr(image, "is_animated", False):
            yield "first of several frames"
        return
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        yield f"frame {shown + 1} of {frames}" if shown else f"first of {frames} frames"


def _png(image: Image.Image) -> bytes:
    bare = image.copy()
    bare.info = {}  # or a profile or transparency of the original would be written
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=3)
    return file.getvalue()
