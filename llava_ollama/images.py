"""Takes any picture source to pixels that every daemon can read, or refuses it clearly.

Runtimes ignore EXIF, alpha and profiles, and old ones die of WebP, TIFF or bytes that they cannot
decode. So every picture is read here, within limits, and decoded first, whole, by `pixels`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeGuard

from llava_ollama import pixels
from llava_ollama.errors import ImageError
from llava_ollama.pixels import MAX_PIXELS, PreparedPicture

if TYPE_CHECKING:
    from typing import BinaryIO

    from PIL import Image

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "SUFFIXES",
    "PreparedPicture",
    "Source",
    "looks_like_picture",
    "prepare",
]

Source: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image"
)
"""A path, `-` for standard input, the bytes of a file, a binary file object or a PIL image."""

MAX_BYTES = 256 * 1024**2
MAX_SEGMENTS = 1000
"""Before the pixels of a JPEG file; Pillow takes 50 us for each and copies what it has of EXIF."""
MAX_METADATA = 16 * 1024**2
MAX_TEXT = 4 * 1024**2
"""Bytes of a PNM file that has its numbers as text: Pillow reads 3 MB a second."""

_PIECE = 1024**2
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
_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_NO_LENGTH = frozenset((0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # JPEG markers
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
"""How a picture's file is named; a word with such an end is meant as one."""


def prepare(source: Source, image_size: int) -> PreparedPicture:
    """Return the picture as it is sent to a model that sees a square of `image_size` pixels.

    It is shrunk, its aspect kept, only where its longest side is over twice `image_size`.

    Raises:
        ImageError: it is missing, no picture, damaged, or refused for its size.
    """
    name = _name(source)
    longest = 2 * image_size
    if _is_pillow(source):
        return pixels.from_image(source, name, longest)
    data = _read(source, name)
    if not pixels.match(pixels.READABLE, data):
        _refuse(data, name)
    _check_cost(data, name)
    return pixels.from_file(data, name, longest)


def looks_like_picture(path: Path) -> bool:
    """Return whether `path` is a file that begins, or is named, like a picture; decode nothing.

    The name counts too, so that an empty or broken `xx.png` is heard of and not passed over.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError):  # unreadable, or no path at all
        return False
    return (
        bool(pixels.match(pixels.READABLE, head) or pixels.match(_FOREIGN_PICTURES, head))
        or path.suffix.lower() in SUFFIXES
    )


# Reading


def _refuse(data: bytes, name: str) -> NoReturn:
    picture = pixels.match(_FOREIGN_PICTURES, data)
    kind = picture or pixels.match(_NO_PICTURES, data)
    looks = f": it looks like {kind}" if kind else ""
    if picture or kind == "PDF":
        hint = "Convert it to PNG or JPEG first"
    else:
        hint = "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file"
    raise ImageError(f"{name} is not a picture that can be read{looks}", hint=hint)


def _is_pillow(source: object) -> TypeGuard[Image.Image]:
    # An object of a class that was never imported does not exist: Pillow is not imported to ask.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(source, pillow.Image)


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return "the picture from standard input" if source == "-" else f"`{os.fspath(source)}`"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the picture given as bytes"
    if _is_pillow(source):
        return "the `PIL.Image`"
    file_name = getattr(source, "name", None)
    return f"`{file_name}`" if isinstance(file_name, str) else "the picture given as a file object"


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
            hint="Make it smaller first",
        )
    return data


def _empty_hint(source: object) -> str:
    if source == "-":
        return "Send a picture to standard input: `... - < xx.png`"
    if hasattr(source, "seek"):
        return "A file object is read from where it stands: `seek(0)` takes it back to the start"
    return "Copy or download it again"


def _missing_hint(path: Path) -> str:
    if path.suffix.lower() in SUFFIXES or (path.suffix and " " not in path.name):
        return "Check the path"
    return "Check the path; `Llava.ask` takes the pictures first, `Chat.ask` the prompt"


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
        shown = path if len(path) < 100 else f"{path[:97]}..."  # noqa: PLR2004 - a line
        raise ImageError(
            f"`{shown}` is an address, not a file", hint="Fetch it first and pass the bytes"
        )
    file = Path(path)
    try:
        if file.is_dir():
            raise ImageError(f"{name} is a folder", hint="Name a picture in it")
        # Opening a named pipe would wait for a writer; a shell's `<(...)` has one.
        if not path.startswith(_STREAMS) and file.exists() and not file.is_file():
            hint = f"Send it to standard input: `... - < '{path}'`"
            raise ImageError(f"{name} is not a regular file", hint=hint)
        with file.open("rb", buffering=0) as stream:
            return _read_stream(stream, name)
    except FileNotFoundError as exc:
        raise ImageError(f"{name} does not exist", hint=_missing_hint(file)) from exc
    except PermissionError as exc:
        raise ImageError(
            f"{name} cannot be read: permission denied", hint=f"chmod +r '{path}'"
        ) from exc
    except OSError as exc:
        reason = f"{name} cannot be read: {exc.strerror}"
        raise ImageError(reason, hint=_missing_hint(file)) from exc
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


# Limits on what Pillow reads slowly


def _check_cost(data: bytes, name: str) -> None:
    if re.match(rb"P[123]\s", data) and len(data) > MAX_TEXT:
        most = f"{MAX_TEXT // 1024**2} MB"
        raise ImageError(
            f"{name} has its pixels as text, and more than the {most} of it that are read",
            hint="Convert it to PNG or JPEG first",
        )
    if data.startswith(b"\xff\xd8\xff") and not _is_short(data):
        raise ImageError(
            f"{name} has more metadata before its pixels than is read",
            hint="Save it without metadata, or convert it to PNG",
        )


def _is_short(data: bytes) -> bool:
    """Return whether a JPEG's pixels come soon, walking through it as Pillow does."""
    at, steps = 2, 0
    while steps <= MAX_SEGMENTS and at <= MAX_METADATA:
        start = data.find(b"\xff", at)
        if start < 0 or data[start + 1 : start + 2] in {b"", b"\xda"}:
            return True
        marker = data[start + 1]
        steps += 1 + (start - at) // 64  # what is no marker is skipped byte by byte
        if marker == 0xFF:  # noqa: PLR2004 - padding
            at = start + 1
        elif marker in _NO_LENGTH:
            at = start + 2
        else:
            at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4]))
    return False
