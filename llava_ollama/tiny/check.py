"""See whether a model sees: draw a picture, ask, and compare."""

from __future__ import annotations

from llava_ollama.client import DESCRIBE, Llava
from llava_ollama.errors import CheckFailed
from llava_ollama.tiny.shapes import Shape, caption, draw, names

_DRAWN = Shape("red", "circle", "white")


def check(llava: Llava) -> tuple[str, str]:
    """Show the model a drawn picture; return what was drawn and what it said.

    Raises:
        CheckFailed: the answer does not name the drawn colour and shape.
    """
    answer = llava.ask(draw(_DRAWN), DESCRIBE, options={"temperature": 0, "num_predict": 100})
    drawn = caption(_DRAWN).rstrip(".").lower()
    if not names(_DRAWN, answer.text):
        raise CheckFailed(
            f"the model was shown {drawn} and said: {answer.text.strip() or 'nothing'}",
            hint="`llava-ollama doctor` looks for the cause; the model is installed",
        )
    return drawn, answer.text.strip()
