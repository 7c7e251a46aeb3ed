"""From an RGB picture to the square that the model was trained on, bit for bit.

xtuner pads the upright picture to a square first, then Hugging Face's CLIP processor shrinks or
enlarges the square by Pillow's bicubic filter. The square of a photo of 48 million pixels takes 256
MB, most of it padding. Pillow's filter has two passes, the first of which works on each row alone:
so rows are padded and narrowed a strip at a time, and the same bits come out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_ollama.errors import ImageError, UsageProblem

if TYPE_CHECKING:
    from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_L_SIDE = 336
"""Pixels: what CLIP-ViT-L/14-336 sees, and so LLaVA-Llama-3; for engines that do not say."""
LARGEST = 8192
"""Pixels: no model sees more, and a projector's header may say anything; `gguf.checks` agrees."""

MAX_PADDED = 1_000_000_000
"""Pixels of the square of a tall picture, which takes 5 ns for each."""
MAX_NARROW = 100_000_000
"""Pixels of a picture that is narrowed, but not yet shortened; 4 bytes each."""

_STRIP = 1 << 20  # pixels of a strip, padded


@dataclass(frozen=True)
class Vision:
    """What a model sees: a square of `image_size` pixels a side.

    `image_mean` is the colour, from 0 to 1 a channel, that the projector subtracts; it pads a
    picture that is not square.

    Raises:
        UsageProblem: no picture can have that size.
    """

    image_size: int
    image_mean: tuple[float, float, float] = CLIP_MEAN

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= LARGEST:
            raise UsageProblem(
                f"a model cannot see a square of `{self.image_size}` pixels",
                hint=f"An image size is from 1 to {LARGEST}; CLIP-L's is {CLIP_L_SIDE}",
            )

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour of the padding, from 0 to 255; for CLIP (122, 116, 104)."""
        red, green, blue = (int(mean * 255) for mean in self.image_mean)
        return red, green, blue


def seen(
    image: Image.Image, turn: int | None, vision: Vision, name: str
) -> tuple[Image.Image, list[str]]:
    """Return what the model sees of an RGB `image`, which `turn` makes upright, and what was done.

    `turn` is one of Pillow's `Transpose`.

    Raises:
        ImageError: the picture, called `name`, is too long and narrow.
    """
    from PIL import Image

    width, height = upright(image.size, turn)
    side, whole = vision.image_size, max(width, height)
    if whole * height > MAX_PADDED or whole * side > MAX_NARROW:
        raise ImageError(
            f"{name} is too long to be padded to a square: {width} x {height} pixels",
            hint="Cut it into parts",
        )
    done = []
    if width != height:
        done.append(f"padded from {width} x {height} to {whole} x {whole} pixels")
    if whole != side:
        done.append(f"resized to {side} x {side} pixels")
    narrow = _narrowed(image, turn, (width, height), vision)
    return narrow.resize((side, side), Image.Resampling.BICUBIC), done


def _narrowed(
    image: Image.Image, turn: int | None, size: tuple[int, int], vision: Vision
) -> Image.Image:
    """Return the padded picture when it has its final width, but not yet its final height."""
    from PIL import Image

    width, height = size
    side, whole = vision.image_size, max(size)
    left, above = (whole - width) // 2, (whole - height) // 2
    narrow = Image.new("RGB", (side, whole), vision.background)
    rows = max(1, _STRIP // whole)
    for top in range(0, height, rows):
        strip = _strip(image, turn, top, min(top + rows, height))
        if strip.width < whole:
            padded = Image.new("RGB", (whole, strip.height), vision.background)
            padded.paste(strip, (left, 0))
            strip = padded
        strip = strip.resize((side, strip.height), Image.Resampling.BICUBIC)
        narrow.paste(strip, (0, above + top))
    return narrow


def _strip(image: Image.Image, turn: int | None, top: int, bottom: int) -> Image.Image:
    """Return the rows from `top` to `bottom` of the upright picture."""
    from PIL.Image import Transpose

    width, height = image.size
    match turn:
        case Transpose.ROTATE_90 | Transpose.TRANSVERSE:
            box = width - bottom, 0, width - top, height
        case Transpose.ROTATE_270 | Transpose.TRANSPOSE:
            box = top, 0, bottom, height
        case Transpose.ROTATE_180 | Transpose.FLIP_TOP_BOTTOM:
            box = 0, height - bottom, width, height - top
        case _:
            box = 0, top, width, bottom
    strip = image.crop(box)
    return strip if turn is None else strip.transpose(Transpose(turn))


def upright(size: tuple[int, int], turn: int | None) -> tuple[int, int]:
    """Return the size of a picture once it is turned."""
    from PIL.Image import Transpose

    width, height = size
    sideways = turn in {
        Transpose.ROTATE_90,
        Transpose.ROTATE_270,
        Transpose.TRANSPOSE,
        Transpose.TRANSVERSE,
    }
    return (height, width) if sideways else (width, height)
