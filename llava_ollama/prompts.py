"""Where the pictures of a turn go, and Meta's Llama-3-instruct text for engines that take it raw.

The published models were trained and evaluated with `<image>` and a newline before the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sized

BEGIN_OF_TEXT = "<|begin_of_text|>"
STOPS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""What ends an answer: the card's stops, in the card's order."""


class Turn(Protocol):
    """What is needed of a message: `engine.interface.Message` is one, and lies above this room."""

    @property
    def role(self) -> str:
        """`system`, `user` or `assistant`."""
        ...

    @property
    def text(self) -> str:
        """What is said; the outer white space does not count."""
        ...

    @property
    def pictures(self) -> Sized:
        """Only their number matters here."""
        ...


def place_ollama(text: str, pictures: int) -> str:
    """Return the content of a turn for Ollama, which puts a picture in place of each `[img]`.

    Without that it would put them before the text as well, but with no newline between.
    """
    return _content(text, pictures, "[img]")


def llama3(messages: Iterable[Turn], *, marker: str, begin_of_text: bool) -> str:
    """Return the whole prompt, `marker` standing for each picture, up to where the answer begins.

    It is what Meta's published template makes with `add_generation_prompt`; `begin_of_text` is
    for engines that add no such token themselves.
    """
    turns = (
        f"{_header(turn.role)}{_content(turn.text, len(turn.pictures), marker)}<|eot_id|>"
        for turn in messages
    )
    return (BEGIN_OF_TEXT if begin_of_text else "") + "".join(turns) + _header("assistant")


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _content(text: str, pictures: int, marker: str) -> str:
    # The template trims a turn as a whole, so that pictures alone end without a newline.
    return (f"{marker}\n" * pictures + text.strip()).strip()
