"""Whether a model sees at all: two drawn pictures, which it must tell apart.

A model that does not see writes the same under every picture, without an error anywhere
(ollama issue 13549). So it is asked before the first picture of a run.
"""

from __future__ import annotations

from llava_ollama import images
from llava_ollama.engine.interface import AsyncEngine, Message, Request
from llava_ollama.errors import CheckFailed
from llava_ollama.images import PreparedPicture, Vision

PROMPT = "Describe this image"
"""The model card's own. The user's may have one right answer for all pictures."""
_OPTIONS = {"temperature": 0, "num_predict": 60}
_SIDE = 112
"""Pixels."""
_WHITE, _RED = b"\xfa\xfa\xfa", b"\xdc\x1e\x1e"
_BLACK, _BLUE = b"\x06\x06\x06", b"\x1e\x3c\xdc"
_LONGEST = 60
"""Characters of an answer that are shown."""


async def check(engine: AsyncEngine, vision: Vision) -> None:
    """Show the model a red circle on white and a blue square on black.

    Raises:
        CheckFailed: it says the same of both, or nothing.
        LlavaOllamaError: it cannot be asked.
    """
    said = [await _said(engine, picture) for picture in drawn(vision)]
    if not said[0] or said[0] == said[1]:
        raise CheckFailed(
            "the model does not see: of two different pictures it says the same, "
            + (f"`{shortened(said[0])}`" if said[0] else "nothing"),
            hint="`llava-ollama doctor` looks for the cause",
        )


def shortened(text: str) -> str:
    """Return an answer as it is shown in a message."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def drawn(vision: Vision) -> tuple[PreparedPicture, PreparedPicture]:
    """Return the two pictures as the model sees them."""
    middle, reach = (_SIDE - 1) / 2, _SIDE / 4
    circle, square = bytearray(), bytearray()
    for y in range(_SIDE):
        for x in range(_SIDE):
            aside, below = abs(x - middle), abs(y - middle)
            circle += _RED if aside**2 + below**2 <= reach**2 else _WHITE
            square += _BLUE if max(aside, below) <= reach else _BLACK
    head = f"P6 {_SIDE} {_SIDE} 255\n".encode()
    return images.prepare(head + circle, vision), images.prepare(head + square, vision)


async def _said(engine: AsyncEngine, picture: PreparedPicture) -> str:
    message = Message("user", PROMPT, (picture,))
    answer = await engine.answer(Request((message,), _OPTIONS))
    return " ".join(answer.text.split())
