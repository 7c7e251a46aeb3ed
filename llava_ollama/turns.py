"""From a caller's pictures and words to a `Request`: what the plain and the async client share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

from llava_ollama import images
from llava_ollama.engine.interface import Message, Request
from llava_ollama.errors import UsageProblem
from llava_ollama.images import Decode, PreparedPicture, Source, Vision, is_one
from llava_ollama.progress import Reporter

Picture: TypeAlias = "Source | PreparedPicture"
"""What `images.prepare` takes, or what it returns."""

Pictures: TypeAlias = "Picture | Iterable[Picture] | None"
"""One picture, several in their order, or none."""


def sources_of(pictures: Pictures, prompt: str) -> list[Picture]:
    """Return the pictures as a list; one picture is told from several by what it can do.

    Raises:
        UsageProblem: they are no pictures, or there is nothing to ask.
    """
    if not isinstance(prompt, str):
        raise UsageProblem(f"the prompt is `{prompt!r}`, not a text", hint="Give a string")
    sources: list[Picture]
    if pictures is None:
        sources = []
    elif isinstance(pictures, PreparedPicture) or is_one(pictures):
        sources = [cast("Picture", pictures)]
    elif isinstance(pictures, Iterable):
        sources = list(cast("Iterable[Picture]", pictures))
    else:
        raise UsageProblem(
            f"`{type(pictures).__name__}` is not a picture",
            hint="Give a path, bytes, a file object, an image or an array, or a list of them",
        )
    if not sources and not prompt.strip():
        raise UsageProblem("there is neither a picture nor a question", hint="Give a prompt")
    return sources


def prepared(
    sources: list[Picture], prompt: str, vision: Vision, decode: Decode = "exact"
) -> Message:
    """Return the user's turn, its pictures as a model of this `vision` sees them.

    Raises:
        ImageError: a picture cannot be read.
    """
    pictures = (
        source
        if isinstance(source, PreparedPicture)
        else images.prepare(source, vision, decode=decode)
        for source in sources
    )
    return Message("user", prompt, tuple(pictures))


def tell(reporter: Reporter, sources: list[Picture], turn: Message) -> None:
    """Pass on what was noted while the pictures of `turn` were prepared."""
    for number, (source, picture) in enumerate(zip(sources, turn.pictures, strict=True), 1):
        name = f"picture {number}"
        if isinstance(source, str | os.PathLike) and not _is_nameless(os.fsdecode(source)):
            name = f"`{os.fsdecode(source)}`"
        for note in picture.notes:
            reporter.note(f"{name}: {note}")


def _is_nameless(source: str) -> bool:
    return source == "-" or source[:5].lower() == "data:"


def request_of(
    earlier: list[Message],
    turn: Message,
    system: str | None,
    options: Mapping[str, Any] | None,
    *,
    trusted: bool = False,
) -> Request:
    """Return the conversation that ends with `turn`.

    Raises:
        UsageProblem: a text of it cannot be sent.
    """
    if not isinstance(system, str | None):
        raise UsageProblem(f"the system prompt is `{system!r}`, not a text", hint="Give a string")
    if not isinstance(options, Mapping | None):
        raise UsageProblem(
            f"the options are `{options!r}`, not a mapping",
            hint='Give a dict, such as `{"temperature": 0}`',
        )
    first = (Message("system", system),) if system and system.strip() else ()
    messages = (*first, *earlier, turn)
    for message in messages:
        try:
            message.text.encode()
        except UnicodeEncodeError as exc:
            raise UsageProblem(
                f"the {message.role}'s text has a lone surrogate, `{exc.object[exc.start]!a}`",
                hint="Read it as UTF-8 text, or drop what cannot be decoded",
            ) from exc
    return Request(messages, dict(options or {}), trusted)
