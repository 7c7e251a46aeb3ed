"""Batches of training data: a pure function of seed, stage and step, made one step ahead."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tests.tiny_llava import eyes, scene, talk, words
from tests.tiny_llava.tokenizer import Tokenizer, train

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SORTED = 6


@dataclass(frozen=True)
class Pictures:
    """`n` pictures (n x 112 x 112 x 3, 0-255) and what the vision tower is taught of each.

    `patches` is n x 64 (see `scene.labels`); `number` is things - 1; `background` an index.
    """

    pixels: NDArray[np.uint8]
    patches: NDArray[np.int64]
    number: NDArray[np.int64]
    background: NDArray[np.int64]

    def of(self, those: NDArray[np.bool_]) -> Pictures:
        """Return those of the pictures."""
        return Pictures(*(getattr(self, one.name)[those] for one in fields(self)))


@dataclass(frozen=True)
class Talks:
    """`n` conversations of `t` tokens (n x t each, padded by branch -1); see `talk.Talk`.

    `picture` (n) is where the places of the picture begin, -1 where there is none; `pictures` has
    the m of the others, in order, and `short` (m) is as in `talk.Talk`.
    """

    tokens: NDArray[np.int64]
    branch: NDArray[np.int64]
    position: NDArray[np.int64]
    taught: NDArray[np.bool_]
    picture: NDArray[np.int64]
    pictures: Pictures
    short: NDArray[np.bool_]


@dataclass(frozen=True)
class Batches:
    """What a stage of the training sees: `self[step]` is a batch, always the same one."""

    seed: int
    stage: str
    size: int

    def __getitem__(self, step: int) -> tuple[str, Pictures | Talks]:
        """Return the layout of the class token (first or last), and the batch."""
        rng = random.Random(f"{self.seed}/{self.stage}/{step}")
        layout = rng.choice(["first", "last"])
        if self.stage == "vision":
            return layout, pictures([scene.make(rng) for _ in range(self.size)], rng)
        return layout, _talks(self._alike(step), rng)

    def _alike(self, step: int) -> list[tuple[scene.Scene, talk.Talk]]:
        """Return one of six batches that are sorted by length together: a fifth less padding."""
        block, turn = divmod(step, _SORTED)
        rng = random.Random(f"{self.seed}/{self.stage}/block {block}")
        scenes = [scene.make(rng) for _ in range(_SORTED * self.size)]
        pairs = [(one, talk.make(one, rng, tokenizer())) for one in scenes]
        pairs.sort(key=lambda pair: len(pair[1].tokens))
        chosen = rng.sample(range(_SORTED), _SORTED)[turn]
        return pairs[chosen * self.size : (chosen + 1) * self.size]


@cache
def tokenizer() -> Tokenizer:
    """Return the tokenizer of the recipe; it depends on `words` alone."""
    return train(words.corpus())


def pictures(scenes: list[scene.Scene], rng: random.Random) -> Pictures:
    """Draw the scenes."""
    return Pictures(
        np.stack([eyes.seen(scene.draw(one, rng)) for one in scenes]),
        np.stack([scene.labels(one) for one in scenes]),
        np.array([len(one.things) - 1 for one in scenes]),
        np.array([scene.BACKGROUND_NAMES.index(one.background) for one in scenes]),
    )


def _talks(pairs: list[tuple[scene.Scene, talk.Talk]], rng: random.Random) -> Talks:
    talks = [said for _, said in pairs]
    longest = max(len(one.tokens) for one in talks)

    def padded(values: list[list[int]], fill: int) -> NDArray[np.int64]:
        return np.array([value + [fill] * (longest - len(value)) for value in values], np.int64)

    shown = [pair for pair in pairs if pair[1].picture >= 0]
    return Talks(
        padded([one.tokens for one in talks], 0),
        padded([one.branch for one in talks], -1),
        padded([one.position for one in talks], 0),
        padded([[int(flag) for flag in one.taught] for one in talks], 0).astype(bool),
        np.array([one.picture for one in talks]),
        pictures([one for one, _ in shown], rng),
        np.array([said.short for _, said in shown], bool),
    )
