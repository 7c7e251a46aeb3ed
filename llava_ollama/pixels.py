"""From a picture file's bytes to an upright RGB picture in a PNG file, or a clear refusal.

Pillow's one owner. It reads only the formats named here, each by its own reader; what it raises
and warns of stays inside.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llava_ollama.errors import ImageError

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

# Only these formats are parsed: the fewer parsers, the fewer ways in.
READABLE = (
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM.{12}[\x0c(4@8l|]\0\0\0"),  # the size of a header that exists
    ("PPM", rb"P[1-6]\s+(#[^\n]*\n\s*)*\d"),
)
# What Pillow's readers are known to raise on hostile files, `MemoryError` aside.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError),
    *(ArithmeticError, AssertionError, RuntimeError, struct.error, zlib.error),
)

# One picture at a time: a large one's memory is then taken once, and the filter on Pillow's
# warnings, which Python keeps per process, is put back in the right order.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class PreparedPicture:
    """A whole PNG file, RGB and upright, its size in pixels, and what was done to it."""

    data: bytes
    width: int
    height: int
    notes: tuple[str, ...] = ()


def match(table: tuple[tuple[str, bytes], ...], data: bytes) -> str | None:
    """Return the first kind in `table` as which `data` begins."""
    head = data[:512]
    return next((name for name, start in table if re.match(start, head, re.DOTALL)), None)


def from_file(data: bytes, name: str, longest: int) -> PreparedPicture:
    """Return the picture in the file `data`, no side over `longest` pixels.

    A small PNG file that every decoder reads alike keeps its bytes.

    Raises:
        ImageError: it is no picture, damaged, or too large; `name` stands for it in the message.
    """
    kind = match(READABLE, data) or ""
    with _decoding(name, kind):
        if not kind:
            raise ValueError("no signature")
        image = _open(kind, data)
        _check_size(image, name)
        # Not a JPEG: of 336 mutated ones that Pillow accepts, llama.cpp's decoder refused 36, and
        # bytes that it cannot decode kill the runner of Ollama 0.24.
        if kind == "PNG" and max(image.size) <= longest and _is_plain(image, data):
            image.load()
            if _orientation(image) not in _TURNS:
                return PreparedPicture(data, *image.size)
        return _remade(image, name, longest, data)


def from_image(image: Image.Image, name: str, longest: int) -> PreparedPicture:
    """Return a PIL image as `from_file` returns a file; the image stays as it was.

    Raises:
        ImageError: it cannot be decoded, has no pixels or too many.
    """
    with _decoding(name, ""):
        return _remade(image, name, longest)


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
    except _DAMAGE as exc:
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


def _remade(image: Image.Image, name: str, longest: int, data: bytes = b"") -> PreparedPicture:
    """Decode `image` and write it anew: upright, RGB, no side over `longest`."""
    from PIL import Image

    _check_size(image, name)
    notes = [*_frame_note(image, data)]
    turned = getattr(image, "tag_v2", {}).get(0x0112) in _TURNS  # and a TIFF's reader turns it
    image.load()
    turn = _TURNS.get(cast("int", _orientation(image)))
    if turned or turn is not None:
        notes.append("turned by its EXIF orientation")
    pixels = _rgb(image)
    scale = longest / max(pixels.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
    if turn is not None:  # now that it is small
        pixels = pixels.transpose(Image.Transpose(turn))
    return PreparedPicture(_png(pixels), *pixels.size, notes=tuple(notes))


def _orientation(image: Image.Image) -> object:
    """Return what EXIF says of a loaded picture; broken EXIF does not cost whole pixels."""
    try:
        return image.getexif().get(0x0112)
    except _DAMAGE:
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


def _rgb(image: Image.Image) -> Image.Image:
    """Return `image` in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":  # one step at a time is all that Pillow knows
        image = image.convert("LA")
    colours = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=colours)
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of 16 bits, 32 bits or floats to 8; Pillow's own conversion cuts them off."""
    from PIL import ImageChops

    grey = image if image.mode == "F" else image.convert("I").convert("F")
    low, high = cast("tuple[float, float]", grey.getextrema())
    if not math.isfinite(low + high):
        raise ValueError(f"grey values from {low} to {high}")
    if image.mode.startswith("I;16") or image.format in {"PNG", "PPM"}:
        usual = [65535]
    else:  # nothing says what white is: the smallest usual value that none exceeds
        usual = [1, 255] if image.mode == "F" else [255, 65535]
    top = high if low < 0 else next((limit for limit in usual if high <= limit), high)
    low = min(low, 0)
    scale = 255 / ((top - low) or 1)
    scaled = grey.point(lambda v: v * scale + (0.5 - low * scale)).convert("L")
    clear = scaled.info.pop("transparency", None)
    if isinstance(clear, int):  # the one grey that is transparent
        above, below = (
            grey.point(lambda v, s=s: v * s - clear * s).convert("L") for s in (255, -255)
        )
        scaled.putalpha(ImageChops.lighter(above, below))
    return scaled


def _from_cmyk(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    if profile := image.info.get("icc_profile"):
        # A profile that is broken or of another colour space: as good as none. So is a Pillow
        # without Little CMS.
        with contextlib.suppress(*_DAMAGE, ImageCms.PyCMSError, ImportError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(
                image,
                source,
                target,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            if converted is not None:
                return converted
    return image.convert("RGB")


def _png(image: Image.Image) -> bytes:
    bare = image.copy()
    bare.info = {}  # or a profile or transparency of the original would be written
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=3)
    return file.getvalue()
