"""What a file is, by its first bytes, and whether it is a picture that is read here.

Only a few formats are parsed: the fewer parsers, the fewer ways in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from llava_ollama.errors import ImageError

MAX_SEGMENTS = 1000
"""Before the pixels of a JPEG file; Pillow takes 50 us for each and copies what it has of EXIF."""
MAX_METADATA = 16 * 1024**2
MAX_TEXT = 4 * 1024**2
"""Bytes of a PNM file that has its numbers as text: Pillow reads 3 MB a second."""

READABLE = (
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM.{12}[\x0c(4@8l|]\0\0\0"),  # the size of a header that exists
    ("PPM", rb"P[1-6]\s+(#[^\n]*\n\s*)*\d"),
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
_NO_LENGTH = frozenset((0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # JPEG markers
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
"""How a picture's file is named; a word with such an end is meant as one."""


def kind_of(data: bytes, name: str) -> str:
    """Return which of `READABLE` the file `data` is; `name` stands for it in messages.

    Raises:
        ImageError: it is none, or one that takes too long to read.
    """
    kind = _match(READABLE, data)
    if not kind:
        _refuse(data, name)
    _check_cost(data, name)
    return kind


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
        bool(_match(READABLE, head) or _match(_FOREIGN_PICTURES, head))
        or path.suffix.lower() in SUFFIXES
    )


def _match(table: tuple[tuple[str, bytes], ...], data: bytes) -> str | None:
    """Return the first kind in `table` as which `data` begins."""
    head = data[:512]
    return next((name for name, start in table if re.match(start, head, re.DOTALL)), None)


def _refuse(data: bytes, name: str) -> NoReturn:
    picture = _match(_FOREIGN_PICTURES, data)
    kind = picture or _match(_NO_PICTURES, data)
    looks = f": it looks like {kind}" if kind else ""
    if picture or kind == "PDF":
        hint = "Convert it to PNG or JPEG first"
    else:
        hint = "Pass a PNG, JPEG, GIF, WebP, BMP, TIFF or PPM file"
    raise ImageError(f"{name} is not a picture that can be read{looks}", hint=hint)


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
