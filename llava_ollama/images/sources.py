"""From whatever a caller has of a picture to the bytes of its file, within a limit.

An address on the network is refused: what may be fetched from where is the caller's decision.
"""

from __future__ import annotations

import binascii
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard
from urllib.parse import unquote_to_bytes

from llava_ollama.errors import ImageError
from llava_ollama.images.arrays import Array, image_of, is_array
from llava_ollama.images.signatures import SUFFIXES

if TYPE_CHECKING:
    from typing import BinaryIO

    from PIL import Image

Source: TypeAlias = (
    "str | os.PathLike[str] | os.PathLike[bytes] | bytes | bytearray | memoryview | BinaryIO"
    " | Image.Image | Array"
)
"""A path, a `data:` URI, `-` for standard input, the bytes of a file, a binary file object, a PIL
image or a numpy array."""

MAX_BYTES = 256 * 1024**2

_PIECE = 1024**2
_STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


def read(source: Source) -> tuple[bytes | Image.Image, str]:
    """Return a picture, as the bytes of its file or as a PIL image, and its name for messages.

    Raises:
        ImageError: it cannot be read, or has more than `MAX_BYTES`.
    """
    name = _name(source)
    if is_array(source):
        return image_of(source), name
    return (source if _is_pillow(source) else _read(source, name)), name


def is_one(source: object) -> bool:
    """Return whether `source` is one picture, and not several; some are iterable themselves."""
    return (
        isinstance(source, str | bytes | bytearray | memoryview | os.PathLike)
        or hasattr(source, "read")
        or _is_pillow(source)
        or is_array(source)
    )


def _is_pillow(source: object) -> TypeGuard[Image.Image]:
    # An object of a class that was never imported does not exist: Pillow is not imported to ask.
    pillow = sys.modules.get("PIL.Image")
    # Another thread may be importing it at this moment; then `source` is none of its images.
    image = getattr(pillow, "Image", None)
    return image is not None and isinstance(source, image)


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        if _is_data(source):
            return "the picture in the data URI"
        return "the picture from standard input" if source == "-" else f"`{os.fsdecode(source)}`"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the picture given as bytes"
    if _is_pillow(source):
        return "the `PIL.Image`"
    if is_array(source):
        return "the numpy array"
    file_name = getattr(source, "name", None)
    return f"`{file_name}`" if isinstance(file_name, str) else "the picture given as a file object"


def _read(source: Any, name: str) -> bytes:
    """Return the bytes of the picture file, at most `MAX_BYTES`."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = _copied(source, name)
    elif _is_data(source):
        data = _from_data_uri(source, name)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        data = _read_standard_input(name) if source == "-" else _read_path(path, name)
    elif hasattr(source, "read"):
        data = _read_stream(source, name)
    else:
        kind = type(source).__name__
        raise ImageError(
            f"a `{kind}` is not a picture",
            hint="Pass a path, bytes, a binary file object, a PIL image or a numpy array",
        )
    if not data:
        raise ImageError(f"{name} is empty: 0 bytes", hint=_empty_hint(source))
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    return data


def _copied(source: bytes | bytearray | memoryview, name: str) -> bytes:
    try:
        if memoryview(source).nbytes > MAX_BYTES:  # a view may show one byte a billion times
            raise _too_large(name)
        return bytes(source)
    except ValueError as exc:  # a view that was released
        raise ImageError(f"{name} cannot be read: {exc}", hint="Pass an open buffer") from exc


def _too_large(name: str) -> ImageError:
    most = MAX_BYTES // 1024**2
    return ImageError(
        f"{name} is larger than the {most} MB that are read", hint="Make it smaller first"
    )


def _is_data(source: object) -> TypeGuard[str]:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _from_data_uri(uri: str, name: str) -> bytes:
    """Return what a `data:` URI carries; the type that it claims does not count."""
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(
            f"{name} is not written in base64", hint="Write it as `data:image/png;base64,...`"
        )
    if len(body) > MAX_BYTES * 3:  # each character may be written as `%41`
        raise _too_large(name)
    try:
        return binascii.a2b_base64(unquote_to_bytes(body), strict_mode=True)
    except ValueError as exc:  # binascii.Error, or a character that is none of UTF-8's
        reason = f"{name} is damaged: its base64 cannot be decoded"
        raise ImageError(reason, hint="Copy it again, to its last character") from exc


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
    if re.match(r"(?i)(https?|ftp|s3):", path):
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
