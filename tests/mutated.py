"""Broken picture files of eight formats, made from sound ones, and what becomes of them.

    python -m tests.mutated FORMAT COUNT SEED

prepares so many of them in this process, whose memory it limits, and prints the outcomes as JSON.
A crash, a hang or an error that is not ours is the test's to notice.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import struct
import sys
import warnings
import zlib
from typing import Any

from PIL import Image

from llava_ollama.errors import ImageError
from llava_ollama.images import prepare
from llava_ollama.tiny.shapes import Shape, draw

MEMORY = 1_500_000_000
"""Bytes of address space: what the largest picture may take, a third of it to spare."""
SIDE = 112
SMALL = draw(Shape("red", "star", "grey"), width=112, height=80).resize((24, 16))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(row: bytes) -> bytes:
    """Return a PNG file of 16-bit colours, two pixels wide."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND")


_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_SEVERAL: dict[str, Any] = {"save_all": True, "append_images": [SMALL.rotate(90)]}
_CLEAR = {"transparency": bytes(range(200))}
SEEDS: dict[str, list[bytes]] = {
    "PNG": [
        encoded(SMALL, "PNG"),
        encoded(SMALL.resize((SIDE, SIDE)), "PNG", dpi=(72, 72)),
        encoded(SMALL, "PNG", exif=_TURNED, **_SEVERAL),
        encoded(SMALL.convert("P"), "PNG", **_CLEAR),
        encoded(SMALL.convert("RGBA"), "PNG"),
        encoded(SMALL.convert("1"), "PNG"),
        encoded(SMALL.convert("I;16"), "PNG"),
        deep_png(bytes(13)),
    ],
    "JPEG": [
        encoded(SMALL, "JPEG", exif=_TURNED),
        encoded(SMALL.convert("L"), "JPEG", comment=b"drawn", dpi=(72, 72)),
        encoded(SMALL.convert("CMYK"), "JPEG"),
        encoded(SMALL.resize((600, 400)), "JPEG", subsampling=0),
    ],
    "progressive JPEG": [
        encoded(SMALL, "JPEG", progressive=True),
        encoded(SMALL.resize((300, 200)), "JPEG", progressive=True, exif=_TURNED),
    ],
    "GIF": [
        encoded(SMALL, "GIF"),
        encoded(SMALL, "GIF", **_SEVERAL),
        encoded(SMALL.convert("P"), "GIF", transparency=3),
    ],
    "WebP": [
        encoded(SMALL, "WebP"),
        encoded(SMALL, "WebP", lossless=True, exif=_TURNED, **_SEVERAL),
        encoded(SMALL.convert("RGBA"), "WebP"),
    ],
    "TIFF": [
        encoded(SMALL, "TIFF", exif=_TURNED),
        encoded(SMALL, "TIFF", compression="tiff_lzw", **_SEVERAL),
        encoded(SMALL, "TIFF", compression="tiff_adobe_deflate"),
        encoded(SMALL.convert("F"), "TIFF"),
        encoded(SMALL.convert("CMYK"), "TIFF", compression="packbits"),
        encoded(SMALL.convert("1"), "TIFF", compression="group4"),
    ],
    "BMP": [
        encoded(SMALL, "BMP"),
        encoded(SMALL.convert("P"), "BMP"),
        encoded(SMALL.convert("1"), "BMP"),
        encoded(SMALL.convert("RGBA"), "BMP"),
    ],
    "PPM": [
        encoded(SMALL, "PPM"),
        encoded(SMALL.convert("L"), "PPM"),
        encoded(SMALL.convert("1"), "PPM"),
        b"P2 3 2 9\n1 2 3\n4 5 6\n",
        b"P5 2 1 65535\n\0\1\2\3",
        b"P3 # drawn\n2 1 9\n1 2 3\n4 5 6\n",
    ],
}
"""Small sound files of each format, plain and odd."""
FORMATS = tuple(SEEDS)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with some of what goes wrong: flips, cuts, repeats, extreme numbers."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = min(rng.randrange(len(damaged) + 1), rng.choice((40, 400, len(damaged))))
        extreme = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
        match rng.randrange(5):
            case 0:
                damaged[at : at + 1] = rng.randbytes(1)
            case 1:
                damaged[at : at + 4] = extreme[:: rng.choice((1, -1))]
            case 2:
                del damaged[at : at + rng.choice((1, 3, 50))]
            case 3:
                damaged[at:at] = damaged[at : at + rng.choice((1, 8, 60))]
            case _:
                del damaged[max(8, at) :]
    return bytes(damaged)


def files(kind: str, count: int, seed: int) -> list[bytes]:
    rng = random.Random(f"{kind} {seed}")
    sound = SEEDS[kind]
    return [mutated(sound[n % len(sound)], rng) for n in range(count)]


def passed_on(count: int) -> list[bytes]:
    """Return mutated PNG files that are sent as they are: broken only where nobody looks."""
    rng, sound = random.Random(5), SEEDS["PNG"][1]
    found: dict[bytes, None] = {}
    while len(found) < count:
        data = mutated(sound, rng)
        with contextlib.suppress(ImageError):
            if data != sound and prepare(data, SIDE).data == data:
                found[data] = None
    return [*found]


def outcomes(kind: str, count: int, seed: int) -> dict[str, int]:
    """Prepare the files by each way in turn, and count what became of them."""
    ways: tuple[dict[str, Any], ...] = (
        *({}, {}, {"decode": "fast"}, {"decode": "native"}, {"as_trained": True}),
    )
    counts = {"prepared": 0, "refused": 0}
    for number, data in enumerate(files(kind, count, seed)):
        way = ways[number % len(ways)]
        try:
            prepared = prepare(data, SIDE, **way)
        except ImageError as refused:
            counts["refused"] += bool(refused.hint)
            continue
        counts["prepared"] += 1
        with warnings.catch_warnings(action="ignore"):  # broken EXIF may go out as it came
            picture = Image.open(io.BytesIO(prepared.data))
            picture.load()
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.size == (prepared.width, prepared.height)
        assert way.get("decode") == "native" or picture.size == (SIDE, SIDE)
    return counts


def main(kind: str, count: str, seed: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.write(json.dumps(outcomes(kind, int(count), int(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])
