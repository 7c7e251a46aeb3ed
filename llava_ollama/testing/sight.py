"""`assert_sees`: show any client some pictures, and hear whether it tells what is in them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any, cast

from llava_ollama.errors import UsageProblem
from llava_ollama.testing.pictures import ShapePicture, shape_picture

Ask = Callable[[bytes, str], str]
"""A picture file's bytes and a prompt in, the answer out."""

PROMPT = "Describe this image"
_SHOWN = (("red", "circle", "white"), ("blue", "square", "black"), ("yellow", "star", "grey"))
_MEANINGS = {
    "I see no picture.": "the picture did not reach the model, or its projector is run one"
    " block short",
    "Wrong chat template.": "the prompt is not written as Llama-3-instruct",
    "": "there was no answer",
}
"""What the tiny model says of a client's mistakes."""


def assert_sees(client: Any, *, model: str | None = None) -> None:
    """Fail unless `client` tells the colour and the shape in each of three drawn pictures.

    `client` is a `Llava`, an `ollama.Client`, an `openai.OpenAI`, or any callable that takes the
    bytes of a PNG file and a prompt and returns the answer. `model` is the name of the model to
    ask through one of the middle two; without it, theirs must have only one.

    Raises:
        AssertionError: an answer is wrong; the message says what was shown and what was said.
        UsageProblem: `client` is none of these, or it has several models.
    """
    __tracebackhide__ = True
    ask = _asking(client, model)
    for seed, words in enumerate(_SHOWN):
        picture = shape_picture(*words, seed=seed)
        said = ask(picture.data, PROMPT)
        if not isinstance(said, str):
            raise _no_client(client, f"answers with `{type(said).__name__}` instead of text")
        if not picture.is_seen_in(said):
            raise AssertionError(_complaint(client, picture, said.strip()))


def _asking(client: Any, model: str | None) -> Ask:
    from llava_ollama.client import Llava

    if _is_asynchronous(client):
        raise _no_client(client, "is asynchronous")
    if isinstance(client, Llava):
        return lambda data, prompt: client.ask(data, prompt, options={"temperature": 0}).text
    origin = _origin(client)
    if origin == "ollama":
        return _ollama(client, model)
    if origin == "openai":
        return _openai(client, model)
    if not callable(client):
        raise _no_client(client, "is no client that is known here")
    return cast("Ask", client)


def _origin(client: Any) -> str:
    """Return the library that a client comes from, without importing it."""
    found = (kind.__module__.partition(".")[0] for kind in type(client).__mro__)
    return next((library for library in found if library in {"ollama", "openai"}), "")


def _is_asynchronous(client: Any) -> bool:
    kinds = type(client).__mro__
    return iscoroutinefunction(client) or any(kind.__name__.startswith("Async") for kind in kinds)


def _ollama(client: Any, model: str | None) -> Ask:
    name = model or _only([each.model for each in client.list().models])

    def ask(data: bytes, prompt: str) -> str:
        turn = {"role": "user", "content": prompt, "images": [data]}
        reply = client.chat(model=name, messages=[turn], options={"temperature": 0})
        return reply.message.content or ""

    return ask


def _openai(client: Any, model: str | None) -> Ask:
    name = model or _only([each.id for each in client.models.list().data])

    def ask(data: bytes, prompt: str) -> str:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": prompt},
        ]
        turn = {"role": "user", "content": parts}
        reply = client.chat.completions.create(model=name, messages=[turn], temperature=0)
        return reply.choices[0].message.content or ""

    return ask


def _only(models: Sequence[str]) -> str:
    if len(models) != 1:
        found = ", ".join(f"`{name}`" for name in models) or "none"
        raise UsageProblem(
            f"which model is to be asked is not clear; there are: {found}",
            hint='Name it: `assert_sees(client, model="tiny-llava-int4")`',
        )
    return models[0]


def _complaint(client: Any, picture: ShapePicture, said: str) -> str:
    shown = picture.sentence.rstrip(".").lower()
    meaning = _MEANINGS.get(said, "that is not what was drawn")
    return f"`{_called(client)}` was shown {shown} and said `{said}`: {meaning}"


def _no_client(client: Any, why: str) -> UsageProblem:
    return UsageProblem(
        f"`{_called(client)}` {why}",
        hint="Give a function of a picture's bytes and a prompt that returns the answer's text",
    )


def _called(client: Any) -> str:
    return getattr(client, "__name__", None) or type(client).__qualname__
