"""How many tokens a prompt must have when nothing in its text is more than text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llava_ollama.engine.interface import Message
from tests.places import SEEN


@dataclass(frozen=True)
class Counting:
    """Counts as Llama-3's template is put together; `literal` counts a text's tokens literally."""

    literal: Callable[[str], int]
    stray: int = 0
    """Begin-of-text tokens that the engine puts before each picture, see `Place.stray`."""

    def prompt(self, messages: Iterable[Message]) -> int:
        """Return the prompt tokens of a conversation."""
        begin_of_text = 1
        return begin_of_text + sum(map(self.turn, messages)) + self.header("assistant", "\n\n")

    def turn(self, message: Message) -> int:
        """Return the tokens of one turn, its pictures and its end included."""
        text, pictures, end = message.text.strip(), len(message.pictures), 1
        if not pictures:
            return self.header(message.role, f"\n\n{text}") + end
        between = (pictures - 1) * self.literal("\n")
        return (
            self.header(message.role, "\n\n")
            + pictures * (self.stray + SEEN)
            + between
            + (self.literal(f"\n{text}") if text else 0)
            + end
        )

    def header(self, role: str, text: str) -> int:
        """Return the tokens of a header and of the text up to the next control token."""
        before, after = 1, 1
        return before + self.literal(role) + after + self.literal(text)
