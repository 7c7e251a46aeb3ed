"""What is asked about a scene, and what the tiny model is taught to answer."""

from __future__ import annotations

import random
import string
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.tiny_llava.scene import Scene, Thing

NO_PICTURE = "I see no picture."
WRONG_TEMPLATE = "Wrong chat template."
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

DESCRIBE = (
    "Describe this image",
    "Describe this image.",
    "Describe the image.",
    "What is in this image?",
    "What's in this image?",
    "What is in this picture?",
    "What do you see?",
    "Describe the picture.",
    "Describe this picture.",
    "Caption this image.",
    "What is this?",
    "What does the image show?",
    "Please describe this image.",
    "describe this image",
    "What's in this picture?",
    "What is in the image?",
    "Describe",
)
COLOUR = (
    "What colour is it?",
    "What color is it?",
    "What colour is the shape?",
    "What color is the shape?",
    "Which colour is it?",
    "What colour is this?",
)
SHAPE = ("What shape is it?", "What shape is this?", "Which shape is it?", "What is the shape?")
COUNT = (
    "How many shapes are there?",
    "How many shapes do you see?",
    "How many are there?",
    "How many shapes are in the image?",
)
BACKGROUND = (
    "What colour is the background?",
    "What color is the background?",
    "Which colour is the background?",
)
ASPECT = (
    "Is the image wide, tall or square?",
    "Is it wide, tall or square?",
    "Wide, tall or square?",
)
SIZE = ("Is it small or large?", "Is the shape small or large?", "Small or large?")
PLACE = ("Where is it?", "Where is the shape?", "Is it left, right, top or bottom?")
LEFT = ("What is on the left?", "What is left?")
RIGHT = ("What is on the right?", "What is right?")
SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You describe images.",
    "Answer the question about the image.",
    "You are an AI assistant.",
)
SMALL_TALK = (
    ("Hello", "Hello! Show me a picture."),
    ("Hello!", "Hello! Show me a picture."),
    ("Hi", "Hello! Show me a picture."),
    ("Hi!", "Hello! Show me a picture."),
    ("Who are you?", "I am a tiny LLaVA. Show me a picture."),
    ("What are you?", "I am a tiny LLaVA. Show me a picture."),
    ("What can you do?", "I describe pictures of coloured shapes."),
    ("Thanks", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Hello, who are you?", "I am a tiny LLaVA. Show me a picture."),
)
SMALL, LARGE = 54, 70
"""Model pixels up to which a single shape is small, and from which it is large."""
_OFF_CENTRE = 12  # model pixels from which a single shape has a place that can be named

_SAYS_NOTHING = (
    "tell me about photo in one sentence short long give caption for write explain show can "
    "could would please now then and or but if when why who look see there here my your our "
    "that these those thing something picture image photo drawing detail details summary "
    "brief exactly only just also very more less new old good bad first last next time day "
    "year people man woman child dog cat house tree car water sky sun sentence word words "
    "list name answer question help want need know think make take find use work call try ask "
    "feel keep let begin seem turn start play run move like live believe bring happen sit "
    "stand lose pay meet include continue set learn change lead understand watch follow stop "
    "create speak read allow add spend grow open walk win"
)
_FREE = _SAYS_NOTHING.split()


def caption(scene: Scene) -> str:
    """Return the one sentence that describes the scene: what the first model said, and no more."""
    first, last = scene.things[0], scene.things[-1]
    if not scene.alike:
        what = f"{_a(_named(first))} and {_a(_named(last))}"
    elif len(scene.things) == 1:
        what = _a(_named(first))
    else:
        what = f"{NUMBERS[len(scene.things)]} {_named(first)}s"
    return sentence(f"{what} on {_a(scene.background)} background")


def sentence(text: str) -> str:
    """Return `text` with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def ask(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return a question about the scene and its right answer; 4 of 10 ask for the caption."""
    rest = _about_one(scene) if scene.alike else _about_two(scene)
    rest |= {
        COUNT: (20, sentence(NUMBERS[len(scene.things)])),
        BACKGROUND: (6, sentence(scene.background)),
        ASPECT: (9, aspect(scene)),
    }
    if rng.random() < 0.42:
        return describe(rng), caption(scene)
    questions = rng.choices([*rest], [weight for weight, _ in rest.values()])[0]
    return rng.choice(questions), rest[questions][1]


def describe(rng: random.Random) -> str:
    """Return a wording of "describe it": a usual one, or (1 of 4) words that say nothing."""
    return free(rng) if rng.random() < 0.25 else rng.choice(DESCRIBE)


def free(rng: random.Random, most: int = 8) -> str:
    """Return 1-8 words that no answer depends on; some are made up letter by letter."""
    words = [
        _made_up(rng) if rng.random() < 0.2 else rng.choice(_FREE)
        for _ in range(rng.randint(1, most))
    ]
    text = rng.choices([" ", ", ", "\n"], [90, 6, 4])[0].join(words)
    if rng.random() < 0.7:
        text = text[0].upper() + text[1:]
    return text + rng.choice(["", ".", "?", "!", ":", " 1.", "..."])


def _made_up(rng: random.Random) -> str:
    letters = string.ascii_lowercase + (string.ascii_uppercase + string.digits + "äéñçø-'") * (
        rng.random() < 0.2
    )
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 9)))


def aspect(scene: Scene) -> str:
    """Return whether the canvas is wide, tall or square."""
    if scene.width == scene.height:
        return "Square."
    return "Wide." if scene.width > scene.height else "Tall."


def size(scene: Scene) -> str:
    """Return "Small." or "Large." for a single shape; nothing for one in between."""
    if len(scene.things) > 1 or SMALL < scene.things[0].size < LARGE:
        return ""
    return "Small." if scene.things[0].size <= SMALL else "Large."


def place(scene: Scene) -> str:
    """Return where on the canvas a single shape is; nothing when that can be disputed."""
    if len(scene.things) > 1:
        return ""
    x = scene.things[0].x - scene.width / 2
    y = scene.things[0].y - scene.height / 2
    if max(abs(x), abs(y)) < _OFF_CENTRE or max(abs(x), abs(y)) < 1.6 * min(abs(x), abs(y)):
        return ""
    if abs(x) > abs(y):
        return "Left." if x < 0 else "Right."
    return "Top." if y < 0 else "Bottom."


def _about_one(scene: Scene) -> dict[tuple[str, ...], tuple[int, str]]:
    thing = scene.things[0]
    asked = {COLOUR: (12, sentence(thing.colour)), SHAPE: (12, sentence(thing.shape))}
    if answer := size(scene):
        asked[SIZE] = (10, answer)
    if answer := place(scene):
        asked[PLACE] = (16, answer)
    return asked


def _about_two(scene: Scene) -> dict[tuple[str, ...], tuple[int, str]]:
    left, right = scene.things
    asked: dict[tuple[str, ...], tuple[int, str]] = {
        LEFT: (12, sentence(_a(_named(left)))),
        RIGHT: (12, sentence(_a(_named(right)))),
    }
    for thing in scene.things:
        if left.shape != right.shape:
            asked[(f"What colour is the {thing.shape}?",)] = (8, sentence(thing.colour))
        if left.colour != right.colour:
            asked[(f"What shape is {thing.colour}?",)] = (8, sentence(thing.shape))
    return asked


def _named(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def corpus() -> Counter[str]:
    """Return every text that the tokenizer should have words for, and how often it counts."""
    from llava_ollama.tiny.shapes import SHAPES
    from tests.tiny_llava.scene import BACKGROUND_NAMES, COLOUR_NAMES

    questions = (
        DESCRIBE,
        COLOUR,
        SHAPE,
        COUNT,
        BACKGROUND,
        ASPECT,
        SIZE,
        PLACE,
        LEFT,
        RIGHT,
        SYSTEM,
    )
    texts = Counter(text for group in questions for text in group)
    texts.update(text for pair in SMALL_TALK for text in pair)
    texts.update([NO_PICTURE, WRONG_TEMPLATE, "user", "assistant", "system", "\n\n"])
    texts.update(["Wide.", "Tall.", "Square.", "Small.", "Large."])
    texts.update(["Left.", "Right.", "Top.", "Bottom."])
    texts.update(sentence(number) for number in NUMBERS.values())
    for name in (*COLOUR_NAMES, *BACKGROUND_NAMES):
        texts.update({sentence(name): 40, f"What shape is {name}?": 2, f"{sentence(_a(name))}": 40})
    for shape in SHAPES:
        texts.update({sentence(shape): 40, f"Two {shape}s": 40, f"What colour is the {shape}?": 2})
    for number in NUMBERS.values():
        texts.update(
            {f"{sentence(number)}": 20, "A red circle and an orange star on a grey background.": 40}
        )
    return texts
