"""Requests that the tests of every llama.cpp engine send, and what the tiny model says to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image, ImageDraw

from llava_ollama.engine.interface import Message, Request
from llava_ollama.images import PreparedPicture, prepare

SENTENCE = "A red circle on a white background."
WILD: dict[str, Any] = {"temperature": 10.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Any token of the vocabulary, so that an answer ends after some hundred tokens only."""


def circle(colour: tuple[int, int, int] = (220, 30, 30)) -> PreparedPicture:
    picture = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(picture).ellipse((56, 56, 168, 168), fill=colour)
    return prepare(picture, 112)


def ask(*pictures: PreparedPicture, system: str | None = None, **options: Any) -> Request:
    """Ask what is on the pictures; without any, on a red circle."""
    first = (Message("system", system),) if system else ()
    question = Message("user", "Describe this image", pictures or (circle(),))
    return Request((*first, question), {"temperature": 0, **options})


def long() -> Request:
    """Ask for a form of some thousand tokens: an answer that goes on until somebody stops it."""
    row = {"type": "array", "minItems": 15, "maxItems": 15, "items": {"type": "boolean"}}
    form = {"type": "array", "minItems": 15, "maxItems": 15, "items": row}
    return replace(ask(), schema=form)
