"""Five hundred pictures of every mode and aspect, drawn from a seed, each with its upright RGB.

Both sides draw them: the script that records what training made of them, and the test of what this
package makes of them. So nothing here imports the package; what upright RGB is, is written once
more, by numpy where Pillow has no word for it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

COUNT = 500
SIDES = (112, 336)
MODES = (
    *("RGB", "RGB", "RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I;16", "F"),
    *("PA", "RGBa", "RGBX", "LAB", "I", "I;16B"),
)
"""Those of which Pillow's `convert("RGB")`, and so training, makes something: all but `La`."""
SIZES = (
    *((1, 1), (2, 1), (1, 9), (9, 1), (3, 2), (1, 700), (700, 1), (1400, 2), (2, 1400), (5, 3)),
    *((112, 112), (336, 336), (112, 111), (336, 335), (335, 336), (113, 113), (337, 337)),
    *((112, 336), (336, 112), (224, 224), (672, 672), (671, 337), (56, 56), (40, 30), (30, 41)),
    *((640, 480), (480, 640), (1000, 30), (30, 1000), (799, 601), (500, 500), (900, 675)),
)
FILES = (None, None, "PNG", "JPEG", "TIFF", "WebP", "BMP", "PPM", "GIF")
_BITS = {"PNG": "RGB L P 1 RGBA LA I;16", "JPEG": "RGB L CMYK YCbCr", "TIFF": "RGB L P 1 RGBA CMYK",
         "WebP": "RGB RGBA", "BMP": "RGB L 1", "PPM": "RGB L 1", "GIF": "P L"}  # fmt: skip
_DEEP = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
_UNTURNED = ("BMP", "PPM", "GIF")


@dataclass(frozen=True)
class Drawn:
    """A picture as it is stored, and upright in RGB."""

    name: str
    stored: Image.Image | bytes
    upright: Image.Image

    def opened(self) -> Image.Image:
        """Return it as training opened it."""
        stored = self.stored
        return Image.open(io.BytesIO(stored)) if isinstance(stored, bytes) else stored


def all_drawn() -> Iterator[Drawn]:
    """Yield the pictures; each has a seed of its own."""
    for number in range(COUNT):
        yield _drawn(number)


def _drawn(number: int) -> Drawn:
    rng = np.random.default_rng(number)
    size = SIZES[number % len(SIZES)]
    if number >= 10 * len(SIZES):
        size = int(rng.integers(1, 600)), int(rng.integers(1, 600))
    mode = MODES[number % len(MODES)]
    image = _in_mode(mode, _painted(rng, size))
    kind = FILES[int(rng.integers(len(FILES)))]
    name = f"{number}: {mode} {size[0]}x{size[1]}"
    if kind is None or mode not in _BITS[kind].split():
        return Drawn(name, image, _upright(image))
    turn = 1 if kind in _UNTURNED else int(rng.integers(1, 9))
    data = _encoded(image, kind, turn)
    return Drawn(f"{name} {kind} turn {turn}", data, _upright(Image.open(io.BytesIO(data))))


def _painted(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return an RGBA picture with gradients, blocks and noise: edges and every value of a byte."""
    width, height = size
    ends = rng.integers(0, 256, (2, 4))
    ramps = [np.linspace(ends[0], ends[1], length) for length in (width, height)]
    smooth = (ramps[0] + ramps[1][:, None]).astype(np.uint16)
    blocks = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 4), np.uint16)
    blocks = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    noise = rng.integers(0, 256, (height, width, 4), np.uint8)
    weights = rng.integers(1, 20, 3).astype(np.uint16)
    mixed = smooth // 2 * weights[0] + blocks * weights[1] + noise * weights[2]
    return Image.fromarray((mixed // weights.sum()).astype(np.uint8))


def _in_mode(mode: str, painted: Image.Image) -> Image.Image:
    if mode in _DEEP:
        deep = np.asarray(painted.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(deep.astype(_DEEP[mode]))
    if mode == "F":
        return Image.fromarray(np.asarray(painted.convert("L")).astype(np.float32) / 255)
    if mode in {"LA", "RGBA", "PA", "RGBa"}:
        return painted.convert(mode)
    return painted.convert("RGB").convert(mode)


def _encoded(image: Image.Image, kind: str, turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True, "exact": True} if kind == "WebP" else {}
    file = io.BytesIO()
    image.save(file, kind, **options, **({} if kind in _UNTURNED else {"exif": exif}))
    return file.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP:
        grey = (np.asarray(upright).astype(np.float64) * 255 / 65535).round()
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if upright.mode == "F":
        grey = (np.asarray(upright).astype(np.float64) * 255).round()
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        white.paste(upright.convert("RGBA"), mask=upright.convert("RGBA"))
        return white.convert("RGB")
    return upright.convert("RGB")
