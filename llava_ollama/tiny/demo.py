"""The demo's pictures, and what a model says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_ollama.client import DESCRIBE, Llava
from llava_ollama.errors import UsageProblem
from llava_ollama.tiny.shapes import Shape, draw, names

SHOWN = (
    Shape("red", "circle", "white"),
    Shape("blue", "square", "black"),
    Shape("yellow", "star", "grey"),
    Shape("purple", "triangle", "white"),
)


@dataclass(frozen=True)
class Described:
    """A picture, what the model said of it, and whether it named colour and shape."""

    picture: Path
    answer: str
    right: bool


def describe(llava: Llava, folder: Path) -> Iterator[Described]:
    """Draw the demo's pictures into `folder` and yield the model's answer to each.

    Raises:
        UsageProblem: nothing can be written there.
    """
    for seed, shape in enumerate(SHOWN):
        path = folder / f"{shape.colour}-{shape.shape}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draw(shape, seed=seed).save(path)
        except OSError as exc:
            raise UsageProblem(
                f"`{path}` cannot be written: {exc.strerror or exc}",
                hint="Choose another folder with `--folder`",
            ) from exc
        text = llava.ask(path, DESCRIBE, options={"temperature": 0}).text.strip()
        yield Described(path, text, names(shape, text))
