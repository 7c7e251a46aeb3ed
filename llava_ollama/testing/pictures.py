"""Drawn pictures, and the sentence that the tiny model says of each."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass, field

from llava_ollama.errors import UsageProblem
from llava_ollama.tiny.shapes import ALL_COLOURS, BACKGROUNDS, SHAPES, Shape, caption, draw, names


@dataclass(frozen=True)
class ShapePicture:
    """A PNG file with one coloured shape in it."""

    shape: Shape
    data: bytes = field(repr=False)

    @property
    def sentence(self) -> str:
        """What the tiny model answers to "Describe this image", at temperature 0."""
        return caption(self.shape)

    @property
    def data_uri(self) -> str:
        """The file as OpenAI's `image_url` takes it."""
        return f"data:image/png;base64,{base64.b64encode(self.data).decode()}"

    def is_seen_in(self, text: str) -> bool:
        """Return whether `text` names the shape's colour and form, and no other of either."""
        return names(self.shape, text)


def shape_picture(  # noqa: PLR0913 - keywords, and three words that read like a sentence
    colour: str = "red",
    shape: str = "circle",
    background: str = "white",
    *,
    width: int = 224,
    height: int = 224,
    seed: int = 0,
) -> ShapePicture:
    """Draw a picture of `width` x `height` pixels; size, place and tint come from `seed`.

    Raises:
        UsageProblem: the tiny model does not know the colour, the shape or the background.
    """
    _check("background", background, BACKGROUNDS)
    others = [name for name in ALL_COLOURS if name != background]
    _check("colour", colour, others, f" on {background}" if colour == background else "")
    _check("shape", shape, SHAPES)
    drawn = Shape(colour, shape, background)
    file = io.BytesIO()
    draw(drawn, width=width, height=height, seed=seed).save(file, "png")
    return ShapePicture(drawn, file.getvalue())


def _check(what: str, word: str, known: Collection[str], where: str = "") -> None:
    if word not in known:
        raise UsageProblem(
            f"the tiny model knows no {what} `{word}`{where}", hint=f"It knows {', '.join(known)}"
        )
