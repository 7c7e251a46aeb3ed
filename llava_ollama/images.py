"""Turns any picture source into pixels that every daemon can read, or refuses it clearly.

Runtimes ignore EXIF, alpha and profiles, and old ones die of WebP, TIFF or bytes that they cannot
decode. So every picture is decoded here first, whole. A file that is already right goes out byte
for byte; any other becomes an upright RGB picture in a PNG file.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import re
import struct
import sys
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeGuard, cast

from llava_ollama.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from PIL import Image

Source: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image"
)
"""A path, `-` for standard input, the bytes of a file, a binary file object or a PIL image."""

MAX_BYTES = 256 * 1024**2
MAX_PIXELS = 200_000_000

_CONVERT = "Convert it to PNG or JPEG first"
_ONLY = "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file"
_AGAIN = "Copy or download it again"
_SMALLER = "Make it smaller first"
_PIECE = 1024**2
_SPARE = 65_536  # bytes that a file sent as it is may have beyond 4 a pixel
_TURNED = range(2, 9)  # EXIF orientations other than upright

# Only these formats are parsed: the fewer parsers, the fewer ways in.
_READABLE = (
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM.{12}[\x0c(4@8l|]\0\0\0"),  # the size of a header that exists
    ("PPM", rb"P[1-6][\s#]"),
)
_FOREIGN_PICTURES = (
    ("HEIC", rb"....ftyp(hei|hev|mif1|msf1)"),
    ("AVIF", rb"....ftypavi"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("Photoshop", rb"8BPS\0"),
    ("an icon", rb"\0\0[\1\2]\0.\0"),
    ("SVG", rb"(?i)\s*<(?!!doctype html|html|head).{0,400}?\bsvg\b"),
)
_NO_PICTURES = (
    ("PDF", rb"%PDF"),
    ("HTML", rb"(?i)\s*(<!doctype\s+html|<html|<head)"),
    ("a video", rb"....ftyp|\x1aE\xdf\xa3"),
    ("a GGUF weight file", rb"GGUF"),
    ("a Git LFS pointer", rb"version https://git-lfs"),
    ("an archive", rb"PK\x03\x04|\x1f\x8b"),
    ("text", rb"[\t\n\r\x20-\x7e\x80-\xf4]+\Z"),
)
_READERS = {  # names of Pillow's modules and classes begin with these
    "PNG": "Png",
    "JPEG": "Jpeg",
    "GIF": "Gif",
    "WebP": "WebP",
    "TIFF": "Tiff",
    "BMP": "Bmp",
    "PPM": "Ppm",
}
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"})

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
    """A whole PNG or JPEG file, RGB and upright, its size in pixels, and what was done to it."""

    data: bytes
    format: Literal["PNG", "JPEG"]
    width: int
    height: int
    notes: tuple[str, ...] = ()


def prepare(source: Source, image_size: int) -> PreparedPicture:
    """Return the picture as it is sent to a model that sees a square of `image_size` pixels.

    It is shrunk, its aspect kept, only where its longest side is over twice `image_size`.

    Raises:
        ImageError: it is missing, no picture, damaged, or refused for its size.
    """
    name = _name(source)
    if _is_pillow(source):
        with _decoding(name, ""):
            return _remade(source, name, 2 * image_size)
    data = _read(source, name)
    kind = _match(_READABLE, data) or _refuse(data, name)
    with _decoding(name, kind):
        image = _open(kind, data)
        _check_size(image, name)
        if max(image.size) <= 2 * image_size and _is_plain(kind, image, data):
            image.load()
            if _orientation(image) not in _TURNED:
                return PreparedPicture(data, "PNG" if kind == "PNG" else "JPEG", *image.size)
        return _remade(image, name, 2 * image_size)


def looks_like_picture(path: Path) -> bool:
    """Return whether `path` is a file that begins, or is named, like a picture; decode nothing.

    The name counts because of an empty or broken `xx.png` a user wants to hear.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError):  # unreadable, or no path at all
        return False
    known = _match(_READABLE, head) or _match(_FOREIGN_PICTURES, head)
    return bool(known) or path.suffix.lower() in _SUFFIXES


def _match(table: tuple[tuple[str, bytes], ...], data: bytes) -> str | None:
    head = data[:512]
    return next((name for name, start in table if re.match(start, head, re.DOTALL)), None)


# Reading


def _is_pillow(source: object) -> TypeGuard[Image.Image]:
    # An object of a class that was never imported does not exist: Pillow is not imported to ask.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(source, pillow.Image)


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return "the picture from standard input" if source == "-" else f"`{os.fspath(source)}`"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the picture's bytes"
    if _is_pillow(source):
        return "the `PIL.Image`"
    file_name = getattr(source, "name", None)
    return f"`{file_name}`" if isinstance(file_name, str) else "the picture's file object"


def _read(source: Any, name: str) -> bytes:
    """Return the bytes of the picture file, at most `MAX_BYTES`."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_standard_input(name) if source == "-" else _read_path(os.fspath(source), name)
    elif hasattr(source, "read"):
        data = _read_stream(source, name)
    else:
        kind = type(source).__name__
        raise ImageError(
            f"a `{kind}` is not a picture",
            hint="Pass a path, bytes, a binary file object or a PIL image",
        )
    if not data:
        raise ImageError(f"{name} is empty: 0 bytes", hint=_empty_hint(source))
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"{name} is larger than the {MAX_BYTES // 1024**2} MB that are read",
            hint=_SMALLER,
        )
    return data


def _empty_hint(source: object) -> str:
    if source == "-":
        return "Send a picture to standard input: `... - < xx.png`"
    if hasattr(source, "seek"):
        return "A file object is read from where it stands: `seek(0)` takes it back to the start"
    return _AGAIN


def _read_standard_input(name: str) -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.isatty():
        raise ImageError(
            f"{name} is missing: nothing is sent to it",
            hint="Send a picture to standard input: `... - < xx.png`",
        )
    return _read_stream(stream, name)


def _read_path(path: str, name: str) -> bytes:
    if re.match(r"(?i)(https?|ftp|s3|data):", path):
        raise ImageError(
            f"{name[:80]} is an address, not a file", hint="Fetch it first and pass the bytes"
        )
    file = Path(path)
    try:
        if file.is_dir():
            raise ImageError(f"{name} is a folder", hint="Name a picture in it")
        with file.open("rb", buffering=0) as stream:
            return _read_stream(stream, name)
    except FileNotFoundError as exc:
        raise ImageError(f"{name} does not exist", hint="Check the path") from exc
    except PermissionError as exc:
        raise ImageError(
            f"{name} cannot be read: permission denied", hint=f"chmod +r '{path}'"
        ) from exc
    except OSError as exc:
        raise ImageError(f"{name} cannot be read: {exc.strerror}", hint="Check the path") from exc
    except ValueError as exc:  # a NUL in it
        raise ImageError(f"{path!a} cannot be a path: {exc}", hint="Check the path") from exc


def _read_stream(stream: Any, name: str) -> bytes:
    """Read on from where `stream` stands; stop soon after `MAX_BYTES`, since some never end."""
    parts: list[bytes] = []
    size = 0
    try:
        while size <= MAX_BYTES and (part := stream.read(_PIECE)):
            if not isinstance(part, bytes):
                raise ImageError(f"{name} gives text", hint='Open the file in binary mode: "rb"')
            parts.append(part)
            size += len(part)
    except (OSError, ValueError) as exc:  # closed, or only for writing
        reason = getattr(exc, "strerror", None) or exc
        raise ImageError(f"{name} cannot be read: {reason}", hint="Pass an open file") from exc
    return b"".join(parts)


# Decoding


def _refuse(data: bytes, name: str) -> NoReturn:
    picture = _match(_FOREIGN_PICTURES, data)
    kind = picture or _match(_NO_PICTURES, data)
    looks = f": it looks like {kind}" if kind else ""
    hint = _CONVERT if picture or kind == "PDF" else _ONLY
    raise ImageError(f"{name} is not a picture that can be read{looks}", hint=hint)


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
    module = importlib.import_module(f"PIL.{_READERS[kind]}ImagePlugin")
    image: Image.Image = getattr(module, f"{_READERS[kind]}ImageFile")(io.BytesIO(data))
    return image


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        most = f"{MAX_PIXELS // 1_000_000} million"
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the {most} that are decoded",
            hint=_SMALLER,
        )
    if not width * height:
        raise ImageError(f"{name} has no pixels: {width} x {height}", hint="Pass another picture")


def _is_plain(kind: str, image: Image.Image, data: bytes) -> bool:
    """Return whether the file, turning aside, can be sent: 8-bit RGB, one frame, no alpha."""
    if image.mode != "RGB" or len(data) > image.width * image.height * 4 + _SPARE:
        return False
    if kind == "PNG":
        return _has_plain_chunks(data)
    return kind == "JPEG" and _has_plain_frame(data)


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


def _has_plain_frame(data: bytes) -> bool:
    """Return whether a JPEG is Huffman-coded, baseline or progressive: what every decoder knows."""
    position = 2
    while position + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker in {0xFFC0, 0xFFC1, 0xFFC2}:
            return True
        # Tables, comments and application data stand before the frame's header.
        if marker not in {0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE} and marker & 0xFFF0 != 0xFFE0:  # noqa: PLR2004 - ITU T.81, table B.1
            return False
        position += length + 2
    return False


# Mending


def _remade(image: Image.Image, name: str, longest: int) -> PreparedPicture:
    """Decode `image` and write it anew: upright, RGB, no side over `longest`."""
    from PIL import Image, ImageOps

    _check_size(image, name)
    notes = [*_frame_note(image)]
    turned = getattr(image, "tag_v2", {}).get(0x0112) in _TURNED  # and a TIFF's reader turns it
    image.load()
    if _orientation(image) in _TURNED:
        image = ImageOps.exif_transpose(image)
        turned = True
    if turned:
        notes.append("turned by its EXIF orientation")
    pixels = _rgb(image)
    scale = longest / max(pixels.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
    return PreparedPicture(_png(pixels), "PNG", *pixels.size, notes=tuple(notes))


def _orientation(image: Image.Image) -> object:
    """Return what EXIF says of a loaded picture; broken EXIF does not cost whole pixels."""
    try:
        return image.getexif().get(0x0112)
    except _DAMAGE:
        return None


def _frame_note(image: Image.Image) -> Iterator[str]:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        shown = image.tell()
        yield f"frame {shown + 1} of {frames}" if shown else f"first of {frames} frames"


def _rgb(image: Image.Image) -> Image.Image:
    """Return `image` in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
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
    else:  # which says nothing of its range
        usual = [1, 255] if image.mode == "F" else [255, 65535]
    top = high if low < 0 else next((limit for limit in usual if high <= limit), high)
    low = min(low, 0)
    scale = 255 / (top - low)
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
