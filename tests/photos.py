"""Photo-like pictures, the same every time: soft light, texture, noise, and a shape in front."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image, ImageChops

from llava_ollama.tiny import shapes
from llava_ollama.tiny.shapes import Shape


def photo(width: int, height: int, seed: int = 0, *, grain: int = 12) -> Image.Image:
    """Return a picture as a camera makes it: detail at every scale, and noise in each pixel."""
    rng = np.random.default_rng(seed)
    whole = Image.new("RGB", (width, height), "grey")
    for side, weight in ((3, 0.9), (12, 0.4), (60, 0.2), (400, 0.1)):
        rough = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        layer = rough.resize((width, height), Image.Resampling.BICUBIC)
        whole = Image.blend(whole, layer, weight)
    return with_noise(whole, seed, grain)


def with_noise(picture: Image.Image, seed: int, grain: int) -> Image.Image:
    """Add noise of `grain` levels of 255, from one tile: a photo's is as costly to compress."""
    rng = np.random.default_rng(seed)
    tile = Image.fromarray(rng.integers(0, grain + 1, (512, 512, 3), np.uint8))
    noise = Image.new("RGB", picture.size)
    for left in range(0, picture.width, 512):
        for top in range(0, picture.height, 512):
            noise.paste(tile, (left, top))
    return ImageChops.subtract(picture, noise)


def jpeg(picture: Image.Image, quality: int = 90, *, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def shape_photo(seed: int) -> tuple[bytes, Shape]:
    """Return a JPEG file of some camera, up to 4 million pixels, and the shape that is on it."""
    rng = random.Random(seed)
    shape = shapes.random_shape(rng)
    times = rng.choice((3, 3, 4, 4, 6, 9))
    width, height = rng.choice(((200, 150), (220, 165), (224, 224), (160, 200)))
    drawn = shapes.draw(shape, width=width, height=height, seed=seed)
    soft = drawn.resize((width * times, height * times), Image.Resampling.BICUBIC)
    return jpeg(with_noise(soft, seed, 10), rng.choice((75, 85, 92))), shape
