"""Scenes of coloured shapes: made up, drawn, and labelled patch by patch.

Lengths are in model pixels (the model sees 112 x 112 of them) unless said otherwise.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from llava_ollama.tiny.shapes import ALL_COLOURS, BACKGROUNDS, SHAPES, outline, tinted

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 112
PATCH = 14
GRID = SIDE // PATCH
PATCHES = GRID * GRID

COLOUR_NAMES = tuple(ALL_COLOURS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
MOST = 4
HELD_OUT = {
    ("red", "star", "white"),
    ("green", "circle", "black"),
    ("blue", "triangle", "grey"),
    ("yellow", "square", "white"),
    ("orange", "circle", "grey"),
    ("purple", "square", "black"),
    ("pink", "triangle", "white"),
    ("cyan", "star", "black"),
}
"""Colour, shape and background that no training picture has together."""

APART = 14
"""The least distance, across, of two different shapes: which is the left one is never in doubt."""
_WIDEST = 1.7
_SQUARE = 0.4
_CANVASES = {64: 4, 80: 4, 96: 12, 112: 14, 128: 14, 160: 14, 200: 12, 224: 14, 256: 8, 320: 6}
_LARGE_CANVASES = {448: 3, 640: 2, 800: 1, 1024: 0.5, 2000: 0.25}
_FINE = 2  # smooth edges: drawn twice as large, then averaged


@dataclass(frozen=True)
class Thing:
    """One shape, its centre on the canvas, its size, and its turn in radians."""

    colour: str
    shape: str
    x: float
    y: float
    size: float
    turn: float

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """Shapes on a canvas; different ones stand from left to right.

    `canvas` is the longer side in canvas pixels; `width` and `height` have 112 as the longer one.
    """

    things: tuple[Thing, ...]
    background: str
    width: float
    height: float
    canvas: int

    @cached_property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Colour and shape of each thing."""
        return tuple(thing.kind for thing in self.things)

    @property
    def alike(self) -> bool:
        """Whether all things have one colour and one shape."""
        return len({*self.kinds}) == 1


def make(rng: random.Random, *, kind: str = "any", held_out: bool = False) -> Scene:
    """Return a new scene of `kind`: one, many (2-4 alike), pair (2 different) or any.

    `held_out`: False for none of the triples never trained, True for at least one.
    """
    while True:
        sort = kind if kind != "any" else rng.choices(["one", "many", "pair"], [34, 36, 30])[0]
        background = rng.choice(BACKGROUND_NAMES)
        kinds = _kinds(sort, background, rng)
        held = any((*one, background) in HELD_OUT for one in kinds)
        if held != held_out:
            continue
        canvases = _CANVASES | _LARGE_CANVASES
        canvas = rng.choices([*canvases], [*canvases.values()])[0]
        width, height = _frame(rng)
        things = _placed(kinds, (width, height), rng)
        if things:
            return Scene(things, background, width, height, canvas)


def _kinds(sort: str, background: str, rng: random.Random) -> list[tuple[str, str]]:
    colours = [name for name in COLOUR_NAMES if name != background]
    first = rng.choice(colours), rng.choice(SHAPES)
    if sort == "one":
        return [first]
    if sort == "many":
        return [first] * rng.randint(2, MOST)
    while (second := (rng.choice(colours), rng.choice(SHAPES))) == first:
        pass
    return [first, second]


def _frame(rng: random.Random) -> tuple[float, float]:
    if rng.random() < _SQUARE:
        return SIDE, SIDE
    short = SIDE / math.exp(rng.uniform(math.log(1.15), math.log(_WIDEST)))
    return (SIDE, short) if rng.random() < 0.5 else (short, SIDE)


def _placed(
    kinds: list[tuple[str, str]], frame: tuple[float, float], rng: random.Random
) -> tuple[Thing, ...]:
    """Return the things where none covers another; nothing when no place was found."""
    for _ in range(60):
        things: list[Thing] = []
        for colour, shape in kinds:
            size = _size(len(kinds), frame, rng)
            margin = size * 0.575
            x = rng.uniform(margin, frame[0] - margin)
            y = rng.uniform(margin, frame[1] - margin)
            thing = Thing(colour, shape, x, y, size, rng.uniform(-0.22, 0.22))
            if not all(_apart(thing, other) for other in things):
                break
            things.append(thing)
        else:
            different = len({*kinds}) > 1
            return tuple(sorted(things, key=lambda thing: thing.x) if different else things)
    return ()


def _size(number: int, frame: tuple[float, float], rng: random.Random) -> float:
    room = min(frame)
    if number == 1:
        return rng.uniform(42, min(94, room / 1.2))
    if number == 2:
        return rng.uniform(28, min(48, room * 0.6))
    return rng.uniform(26, min(40, room * 0.5))


def _apart(one: Thing, other: Thing) -> bool:
    far = math.hypot(one.x - other.x, one.y - other.y) > (one.size + other.size) * 0.62
    return far and (one.kind == other.kind or abs(one.x - other.x) >= APART)


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Return the scene as an RGB picture; tint, smoothness, light and JPEG come from `rng`."""
    scale = scene.canvas / SIDE
    size = max(8, round(scene.width * scale)), max(8, round(scene.height * scale))
    fine = _FINE if scene.canvas <= 224 and rng.random() < 0.7 else 1
    tint = tinted(BACKGROUNDS[scene.background], 6, rng)
    image = Image.new("RGB", (size[0] * fine, size[1] * fine), tint)
    pen = ImageDraw.Draw(image)
    tints = {kind: tinted(ALL_COLOURS[kind[0]], 10, rng) for kind in scene.kinds}
    for thing in scene.things:
        fill = (
            tints[thing.kind] if rng.random() < 0.5 else tinted(ALL_COLOURS[thing.colour], 10, rng)
        )
        pen.polygon(_corners(thing, scale * fine), fill=fill)
    if fine > 1:
        image = image.reduce(fine)
    return _as_taken(image, rng)


def _corners(
    thing: Thing, scale: float, offset: tuple[float, float] = (0, 0)
) -> list[tuple[float, float]]:
    half = thing.size / 2
    return [
        ((thing.x + half * x + offset[0]) * scale, (thing.y + half * y + offset[1]) * scale)
        for x, y in outline(thing.shape, thing.turn)
    ]


def _as_taken(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return the picture as a lens, a light from one side and a JPEG encoder may leave it."""
    if rng.random() < 0.1:
        radius = rng.uniform(0.2, 0.9) * max(image.size) / SIDE
        image = image.filter(ImageFilter.GaussianBlur(min(radius, 4)))
    if rng.random() < 0.1:
        light = (
            Image.linear_gradient("L")
            .point(lambda v: 255 - v // 14)
            .rotate(rng.choice([0, 90, 180, 270]))
        )
        image = ImageChops.multiply(image, light.resize(image.size).convert("RGB"))
    if rng.random() < 0.2:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(40, 95))
        image = Image.open(file).convert("RGB")
    return image


def labels(scene: Scene) -> NDArray[np.int64]:
    """Return for each of the 64 patches 0 (nothing) or 1 + 4 * colour + shape.

    A shape counts where it covers a fifth of the patch: labels by bounding box did not train.
    """
    mask = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(mask)
    offset = (SIDE - scene.width) / 2, (SIDE - scene.height) / 2
    for number, thing in enumerate(scene.things, start=1):
        pen.polygon(_corners(thing, 1, offset), fill=number)
    grid = np.asarray(mask).reshape(GRID, PATCH, GRID, PATCH)
    found = np.zeros((GRID, GRID), np.int64)
    for number, (colour, shape) in enumerate(scene.kinds, start=1):
        covered = (grid == number).mean((1, 3)) >= 0.2
        found[covered] = 1 + 4 * COLOUR_NAMES.index(colour) + SHAPES.index(shape)
    return found.ravel()
