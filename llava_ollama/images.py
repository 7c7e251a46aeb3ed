"""Takes any picture source to pixels that every daemon can read, or refuses it clearly.

Runtimes ignore EXIF, alpha and profiles, and old ones die of WebP, TIFF or bytes that they cannot
decode. So every picture is read here, within limits, and decoded first, whole, by `pixels`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from llava_ollama import pixels
from llava_ollama.errors import ImageError
from llava_ollama.pixels import MAX_PIXELS, PreparedPicture

if TYPE_CHECKING:
    from typing import BinaryIO

    from PIL import Image

__all__ = ["MAX_BYTES", "MAX_PIXELS", "PreparedPicture", "Source", "looks_like_picture", "prepare"]

Source: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image"
)
"""A path, `-` for standard input, the bytes of a file, a binary file object or a PIL image."""

MAX_BYTES = 256 * 1024**2

_PIECE = 1024**2
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"})


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
    return pixels.from_file(_read(source, name), name, longest)


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
    return pixels.begins_like_picture(head) or path.suffix.lower() in _SUFFIXES


# Reading


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
