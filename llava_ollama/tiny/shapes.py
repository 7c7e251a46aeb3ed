"""Draws the pictures that the tiny model knows, and says whether an answer describes one right."""

from __future__ import annotations

import io
import math
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# The values are those of the training pictures.
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 20),
    "purple": (130, 40, 170),
    "pink": (250, 130, 190),
    "cyan": (40, 210, 220),
}
ALL_COLOURS = COLOURS | {"black": (6, 6, 6), "white": (250, 250, 250)}
"""Black and white besides, where the background is another."""
BACKGROUNDS = {"white": (250, 250, 250), "grey": (128, 128, 128), "black": (6, 6, 6)}
SHAPES = ("circle", "square", "triangle", "star")

_BEHIND = re.compile(r"\bon (?:a )?(?:black|white)\b|\b(?:black|white)(?= (?:\w+ )?background)")
"""Where two colours are not those of shapes: "on white", "its background, a white background"."""
_SEEN = 112  # pixels: the side of the square that the model sees
_SIZES = (44, 92)  # smallest and largest shape in it
_REACH = 1.15  # no point of a shape of size 1 is further from its centre than half of this
_TURN = 0.22  # radians, either way
_ORIENTATION, _HELD_UPRIGHT = 0x0112, 6  # EXIF's tag, and: turn it clockwise to see it
_FINE = 4  # a shape is drawn this many times larger, then averaged: smooth edges


@dataclass(frozen=True)
class Shape:
    """One coloured shape on a background: the whole content of a picture."""

    colour: str
    shape: str
    background: str


def random_shape(rng: random.Random) -> Shape:
    """Return one of the 96 combinations."""
    return Shape(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(BACKGROUNDS)))


def caption(shape: Shape) -> str:
    """Return what the tiny model says when it sees `shape`."""
    article = "An" if shape.colour[0] in "aeiou" else "A"
    return f"{article} {shape.colour} {shape.shape} on a {shape.background} background."


def names(shape: Shape, text: str) -> bool:
    """Return whether `text` names the shape's colour and form, and no other of either.

    What is said of the background is free, and its own colour may be told.
    """
    words = set(re.findall(r"[a-z]+", _BEHIND.sub("", text.lower())))
    words |= {word.removesuffix("s") for word in words}
    colours = words & (ALL_COLOURS.keys() - {shape.background})
    return colours == {shape.colour} and words & {*SHAPES} == {shape.shape}


def draw(shape: Shape, *, width: int = 224, height: int = 224, seed: int = 0) -> Image.Image:
    """Return an RGB picture of `width` x `height` pixels; size, place and tint come from `seed`."""
    from PIL import Image, ImageDraw

    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    side = max(width, height)
    room = min(width, height) * _SEEN / side  # the shorter side as the model sees it
    size = rng.uniform(*(min(limit, room / _REACH) for limit in _SIZES)) * side / _SEEN
    margin = size * _REACH / 2
    centre = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    turn = rng.uniform(-_TURN, _TURN)
    canvas = Image.new(
        "RGB",
        (width * _FINE, height * _FINE),
        tinted(BACKGROUNDS[shape.background], 6, rng),
    )
    points = [
        (_FINE * (centre[0] + size / 2 * x), _FINE * (centre[1] + size / 2 * y))
        for x, y in outline(shape.shape, turn)
    ]
    ImageDraw.Draw(canvas).polygon(points, fill=tinted(ALL_COLOURS[shape.colour], 10, rng))
    return canvas.reduce(_FINE)


def photo(shape: Shape, *, width: int = 600, height: int = 800, seed: int = 0) -> bytes:
    """Return a JPEG file like that of a phone held upright: its pixels lie on their side.

    The light falls off to one edge, the lens is not quite sharp, and every pixel has its noise.
    """
    from PIL import Image, ImageChops, ImageFilter

    size = width, height
    sharp = draw(shape, width=width, height=height, seed=seed)
    light = Image.linear_gradient("L").point(lambda v: 255 - v // 16).resize(size)
    lit = ImageChops.multiply(sharp.filter(ImageFilter.GaussianBlur(1.5)), light.convert("RGB"))
    noise = random.Random(seed).randbytes(width * height * 3)  # noqa: S311 - likewise
    grain = Image.frombytes("RGB", size, noise).point(lambda v: v // 20)
    exif = Image.Exif()
    exif[_ORIENTATION] = _HELD_UPRIGHT
    file = io.BytesIO()
    stored = ImageChops.subtract(lit, grain).transpose(Image.Transpose.ROTATE_90)
    stored.save(file, "JPEG", quality=85, exif=exif)
    return file.getvalue()


def tinted(colour: tuple[int, int, int], spread: int, rng: random.Random) -> tuple[int, int, int]:
    """Return `colour` (RGB, 0-255) with each part moved by at most `spread`."""
    red, green, blue = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return red, green, blue


def outline(shape: str, turn: float) -> list[tuple[float, float]]:
    """Return the corners of a shape around (0, 0), turned by `turn` radians; y points down."""
    match shape:
        case "circle":
            corners = [_at(1, angle / 60) for angle in range(120)]
        case "square":
            corners = [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)]
        case "triangle":
            corners = [
                (x, y + 0.1) for x, y in (_at(1.15, third * 2 / 3 - 0.5) for third in range(3))
            ]
        case "star":
            corners = [_at(0.45 if tenth % 2 else 1.1, tenth / 5 - 0.5) for tenth in range(10)]
        case _:
            raise ValueError(f"no shape `{shape}`")
    sine, cosine = math.sin(turn), math.cos(turn)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in corners]


def _at(radius: float, half_turns: float) -> tuple[float, float]:
    angle = half_turns * math.pi
    return radius * math.cos(angle), radius * math.sin(angle)
