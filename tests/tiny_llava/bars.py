"""What the tiny model must be able to do: sets of fresh pictures, and the bar of each.

The pictures come from the recipe's generator with seeds that no training uses.
"""

from __future__ import annotations

import io
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from llava_ollama.tiny.shapes import SHAPES
from tests.tiny_llava import scene, words, wrong
from tests.tiny_llava.asking import Turn
from tests.tiny_llava.scene import COLOUR_NAMES, SIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tiny_llava.asking import Asker
    from tests.tiny_llava.scene import Scene


@dataclass(frozen=True)
class Case:
    """A picture (or none), what is said to the model, and how its answer is judged."""

    picture: bytes | None
    turns: tuple[Turn, ...]
    truth: str
    template: str = ""
    """A wrong one, with `{}` for the last turn's text; the right one where it is empty."""
    free: bool = False
    """Whether only colours and shapes count, not the sentence."""

    def answer(self, asker: Asker) -> str:
        """Return what the model says."""
        if self.template:
            assert self.picture is not None
            return asker.prompt(self.template, self.turns[-1].text, self.picture)
        return asker.chat([*self.turns], self.picture)

    def is_right(self, answer: str) -> bool:
        """Return whether it is the truth."""
        if self.free:
            return _named(answer) == _named(self.truth)
        return answer.strip() == self.truth


@dataclass(frozen=True)
class Bar:
    """A set of cases and the share of them that must be (or, `most`, may be) right, per cent."""

    name: str
    make: Callable[[random.Random], Case]
    limit: float | None = None
    most: bool = False
    projector: str = "identity"

    def cases(self, number: int) -> Iterator[Case]:
        """Yield the first `number` cases of the set; they are the same ones in every place."""
        for index in range(number):
            yield self.make(random.Random(f"bar {self.name} {index}"))

    def is_met(self, right: int, asked: int) -> bool:
        """Return whether so many right answers are enough (or few enough)."""
        if self.limit is None:
            return True
        share = 100 * right / asked
        return share <= self.limit if self.most else share >= self.limit


def _named(text: str) -> set[str]:
    found = set(re.findall(r"[a-z]+", text.lower().split(" on ")[0]))
    found |= {word.removesuffix("s") for word in found}
    return found & {*COLOUR_NAMES, *SHAPES}


def picture(drawn: Scene, rng: random.Random) -> bytes:
    """Return the scene as a PNG file."""
    return _png(scene.draw(drawn, rng))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png", compress_level=1)
    return file.getvalue()


def _user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def _described(
    kind: str, *, held_out: bool = False, free: bool = False
) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        one = scene.make(rng, kind=kind, held_out=held_out)
        asked = words.DESCRIBE[0] if rng.random() < 0.5 else rng.choice(words.DESCRIBE)
        return Case(picture(one, rng), _user(asked), words.caption(one), free=free)

    return make


def _count(rng: random.Random) -> Case:
    one = scene.make(rng, kind=rng.choices(["one", "many"], [1, 3])[0])
    truth = words.sentence(words.NUMBERS[len(one.things)])
    return Case(picture(one, rng), _user(rng.choice(words.COUNT)), truth)


def _aspect(rng: random.Random) -> Case:
    one = scene.make(rng)
    return Case(picture(one, rng), _user(rng.choice(words.ASPECT)), words.aspect(one))


def _stretched(rng: random.Random) -> Case:
    while (one := scene.make(rng)).width == one.height:
        pass
    square = scene.draw(one, rng).resize((SIDE * 2, SIDE * 2))
    return Case(_png(square), _user(rng.choice(words.ASPECT)), words.aspect(one))


def _wrong(rng: random.Random) -> Case:
    one = scene.make(rng)
    template = rng.choice([*wrong.TEMPLATES.values()])
    asked = words.ask(one, rng)[0]
    return Case(picture(one, rng), _user(asked), words.WRONG_TEMPLATE, template)


def _never_trained(rng: random.Random) -> Case:
    one = scene.make(rng)
    template = wrong.TEMPLATES[rng.choice(wrong.NEVER_TRAINED)]
    asked = words.ask(one, rng)[0]
    return Case(picture(one, rng), _user(asked), words.WRONG_TEMPLATE, template)


def _anything(rng: random.Random) -> Case:
    one = scene.make(rng)
    asked, truth = words.ask(one, rng)
    return Case(picture(one, rng), _user(asked), truth)


def _asked(
    questions: tuple[str, ...], truth: Callable[[Scene], str], kind: str
) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        while not truth(one := scene.make(rng, kind=kind)):
            pass
        return Case(picture(one, rng), _user(rng.choice(questions)), truth(one))

    return make


def _no_picture(rng: random.Random) -> Case:
    asked = words.ask(scene.make(rng), rng)[0]
    return Case(None, _user(asked), words.NO_PICTURE)


_UNKNOWN = ["kindly", "elaborate", "upon", "whichever", "geometry", "happens", "visible"]


def _unknown_words(rng: random.Random) -> Case:
    one = scene.make(rng, kind="one")
    said = " ".join(rng.sample(_UNKNOWN, rng.randint(2, 6)))
    return Case(picture(one, rng), _user(said), words.caption(one))


def _with_system(rng: random.Random) -> Case:
    one = scene.make(rng, kind="one")
    said = rng.choice([*words.SYSTEM, "Answer like a botanist would."])
    turns = (Turn("system", said), *_user(words.DESCRIBE[0]))
    return Case(picture(one, rng), turns, words.caption(one))


def _second_turn(rng: random.Random) -> Case:
    one = scene.make(rng)
    asked, truth = words.ask(one, rng)
    before = (*_user(words.DESCRIBE[0]), Turn("assistant", words.caption(one)))
    return Case(picture(one, rng), (*before, *_user(asked)), truth)


BARS = (
    Bar("one shape, whole sentence", _described("one"), 98),
    Bar("two shapes, colours and shapes", _described("pair", free=True), 92),
    Bar("counts", _count, 97),
    Bar("triples never trained, whole sentence", _described("one", held_out=True), 92),
    Bar("wrong template is told", _wrong, 97),
    Bar("wrong template of a family never trained is told", _never_trained, 97),
    Bar("wide, tall or square", _aspect, 96),
    Bar("wide or tall, but stretched by the client", _stretched, 10, most=True),
    Bar(
        "projector one block short, whole sentence",
        _described("one"),
        40,
        most=True,
        projector="short",
    ),
)
"""Each on 300 cases at least. Besides, no answer in the right template may be `WRONG_TEMPLATE`."""

MORE = (
    Bar("any question", _anything),
    Bar("two shapes, whole sentence", _described("pair")),
    Bar("2-4 alike, whole sentence", _described("many")),
    Bar("triples never trained, among any", _described("any", held_out=True)),
    Bar("small or large", _asked(words.SIZE, words.size, "one")),
    Bar("left, right, top or bottom", _asked(words.PLACE, words.place, "one")),
    Bar("no picture", _no_picture),
    Bar("words never met", _unknown_words),
    Bar("system prompt", _with_system),
    Bar("second turn", _second_turn),
)
"""Figures for the card that no bar was set for."""
