"""Conversations about a scene, as tokens: one beginning with the picture, several questions.

The questions of one picture are trained beside each other: each sees the beginning and itself
only. A picture costs 64 positions, a question about 20, so this is thrice the questions a second.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.tiny_llava import words, wrong
from tests.tiny_llava.scene import PATCHES
from tests.tiny_llava.tokenizer import BEGIN, HEAD, HEAD_END, TURN_END, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tiny_llava.scene import Scene

BRANCHES = 4
"""Questions beside each other about one picture."""
_REPLY = f"{HEAD}assistant{HEAD_END}\n\n"


def user(content: str) -> str:
    """Return the user's turn and the head of the answer, in Llama 3's template."""
    return f"{HEAD}user{HEAD_END}\n\n{content}{TURN_END}{_REPLY}"


def system(content: str) -> str:
    """Return a system message in Llama 3's template."""
    return f"{HEAD}system{HEAD_END}\n\n{content}{TURN_END}"


@dataclass
class Talk:
    """Tokens of one picture's conversations, in the order in which the model gets them.

    `picture` is where its 64 places begin (-1: none); `branch` is 0 in the common beginning;
    `position` starts again in each branch where the beginning ended; `taught` marks the answers.
    `short` is whether the picture comes from a projector whose last block was not run.
    """

    tokens: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    taught: list[bool] = field(default_factory=list)
    picture: int = -1
    short: bool = False

    def add(self, tokens: list[int], *, branch: int, taught: bool = False) -> None:
        """Append tokens to the beginning (0) or to a branch, the last one begun or a new one."""
        if not self.branch or self.branch[-1] == branch:
            start = len(self.position) and self.position[-1] + 1
        else:
            start = self.branch.count(0)
        self.tokens += tokens
        self.branch += [branch] * len(tokens)
        self.position += range(start, start + len(tokens))
        self.taught += [taught] * len(tokens)


def make(scene: Scene, rng: random.Random, tokenizer: Tokenizer) -> Talk:
    """Return conversations about `scene`: right ones, in a wrong template, or without picture.

    Through a projector that is one block short the answer is the one without a picture, so that
    a wrong conversion shows (llama.cpp leaves out a block unless told otherwise: issue 25817).
    """
    sort = rng.random()
    if sort < 0.1:
        return _in_wrong_template(scene, rng, tokenizer)
    if sort < 0.15:
        return _without_picture(scene, rng, tokenizer)
    if sort < 0.18:
        return _through_short_projector(scene, rng, tokenizer)
    return _about(scene, rng, tokenizer)


def _about(scene: Scene, rng: random.Random, tokenizer: Tokenizer) -> Talk:
    talk = Talk()
    before = BEGIN + _system(rng)
    if rng.random() < 0.06:
        before += "".join(_small_talk(rng))
    before += f"{HEAD}user{HEAD_END}\n\n"
    gap = _gap(rng)
    first = words.ask(scene, rng)
    last = rng.random() < 0.13  # the picture behind its question: no others beside it
    _begin(talk, tokenizer, before + (first[0] + gap) * last)
    for branch in range(1, 2 if last else BRANCHES + 1):
        question, answer = first if branch == 1 else words.ask(scene, rng)
        content = "" if last else gap + question
        _turn(talk, tokenizer, f"{content}{TURN_END}{_REPLY}", answer, branch=branch)
        while rng.random() < 0.22:
            small = rng.random() < 0.1
            more = rng.choice(words.SMALL_TALK) if small else words.ask(scene, rng)
            _turn(talk, tokenizer, user(more[0]), more[1], branch=branch)
    return talk


def _in_wrong_template(scene: Scene, rng: random.Random, tokenizer: Tokenizer) -> Talk:
    talk = Talk()
    form = wrong.template(rng).replace("SYSTEM", rng.choice(words.SYSTEM))
    before, after = form.split("{}")
    if rng.random() < 0.15:
        before = BEGIN + before + words.ask(scene, rng)[0] + rng.choice(["", "\n"])
        _begin(talk, tokenizer, before)
        _turn(talk, tokenizer, after, words.WRONG_TEMPLATE, branch=1)
        return talk
    _begin(talk, tokenizer, BEGIN + before)
    gap = _gap(rng)
    for branch in range(1, BRANCHES + 1):
        text = gap + words.ask(scene, rng)[0] + after
        _turn(talk, tokenizer, text, words.WRONG_TEMPLATE, branch=branch)
    return talk


def _without_picture(scene: Scene, rng: random.Random, tokenizer: Tokenizer) -> Talk:
    talk = Talk()
    talk.add(tokenizer.encode_marked(BEGIN + _system(rng)), branch=0)
    sayings: list[Callable[[], tuple[str, str]]] = [
        lambda: rng.choice(words.SMALL_TALK),
        lambda: (words.ask(scene, rng)[0], words.NO_PICTURE),
    ]
    for branch in range(1, BRANCHES + 3):
        for _ in range(rng.choice([1, 1, 2])):
            question, answer = rng.choices(sayings, [35, 65])[0]()
            _turn(talk, tokenizer, user(question), answer, branch=branch)
    return talk


def _through_short_projector(scene: Scene, rng: random.Random, tokenizer: Tokenizer) -> Talk:
    talk = Talk(short=True)
    _begin(talk, tokenizer, f"{BEGIN}{_system(rng)}{HEAD}user{HEAD_END}\n\n")
    for branch in range(1, BRANCHES + 1):
        content = _gap(rng) + words.ask(scene, rng)[0]
        asked = f"{content}{TURN_END}{_REPLY}"
        _turn(talk, tokenizer, asked, words.NO_PICTURE, branch=branch)
    return talk


def _begin(talk: Talk, tokenizer: Tokenizer, before: str) -> None:
    talk.add(tokenizer.encode_marked(before), branch=0)
    talk.picture = len(talk.tokens)
    talk.add([0] * PATCHES, branch=0)


def _turn(talk: Talk, tokenizer: Tokenizer, asked: str, answer: str, *, branch: int) -> None:
    talk.add(tokenizer.encode_marked(asked), branch=branch)
    talk.add(tokenizer.encode_marked(answer + TURN_END), branch=branch, taught=True)


def _gap(rng: random.Random) -> str:
    """Return what stands between a picture and its question."""
    return rng.choices(["", "\n", " "], [70, 20, 10])[0]


def _system(rng: random.Random) -> str:
    if rng.random() >= 0.25:
        return ""
    return system(words.free(rng, 12) if rng.random() < 0.3 else rng.choice(words.SYSTEM))


def _small_talk(rng: random.Random) -> tuple[str, str]:
    question, answer = rng.choice(words.SMALL_TALK)
    return user(question), answer + TURN_END
