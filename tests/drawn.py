"""Fresh pictures with one shape each, for every test that asks a model what it sees."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from llava_ollama.tiny import shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

SIDES = (96, 112, 128, 160, 200, 224, 256, 320)
MAX_ASPECT = 1.6


def one_shape_pictures(n: int, seed: int) -> Iterator[tuple[Image.Image, shapes.Shape]]:
    """Yield `n` pictures, square, wide or tall, and what is on each."""
    rng = random.Random(seed)
    for _ in range(n):
        shape = shapes.random_shape(rng)
        side = rng.choice(SIDES)
        limit = math.log(MAX_ASPECT)
        aspect = 1.0 if rng.random() < 0.4 else math.exp(rng.uniform(-limit, limit))
        width, height = round(side * min(1, aspect)), round(side / max(1, aspect))
        yield shapes.draw(shape, width=width, height=height, seed=rng.getrandbits(32)), shape
