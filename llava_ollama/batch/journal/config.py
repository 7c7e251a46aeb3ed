"""What a run was begun with, and in which way a continuation differs from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_ollama.batch.work import PREPARATION, Ask


@dataclass(frozen=True)
class Config:
    """What is asked of every picture, and of which model."""

    model: str
    """Its name where it is asked; another machine may call the same model otherwise."""
    model_digest: str
    asks: tuple[Ask, ...] = ()
    """Empty where each picture brings its own."""


@dataclass(frozen=True)
class Asked:
    """A question as the journal has it."""

    id: int
    ask: Ask
    model_digest: str
    preparation: int = PREPARATION
    own: bool = False
    """Whether it is asked only of the pictures that brought it with them."""


def to_text(ask: Ask) -> str:
    """Return the ask as JSON, in ASCII: an argument that is not UTF-8 has lone surrogates."""
    schema = None if ask.schema is None else dict(ask.schema)
    return json.dumps([ask.prompt, ask.system, dict(ask.options), schema])


def from_text(text: str) -> Ask:
    """Return the ask that `to_text` wrote."""
    prompt, system, options, schema = json.loads(text)
    return Ask(prompt, system, options, schema)


def differences(new: Ask, digest: str, known: Sequence[Asked]) -> list[str]:
    """Return what tells `new` from the most similar question of a run, each as `what was → is`."""
    if not known:
        return [f"the prompt is `{new.prompt}`, and every picture of the run brought its own"]
    return min((list(_differ(new, digest, one)) for one in known), key=len)


def _differ(new: Ask, digest: str, one: Asked) -> Iterator[str]:
    if new.prompt != one.ask.prompt:
        yield f"the prompt was `{one.ask.prompt}` and is `{new.prompt}`"
    if new.system != one.ask.system:
        yield f"the system prompt was {_text(one.ask.system)} and is {_text(new.system)}"
    was, now = one.ask.options, new.options
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield f"the option {name} was {_option(was, name)} and is {_option(now, name)}"
    if new.schema != one.ask.schema:
        yield "the schema is another"
    if digest != one.model_digest:
        yield f"the model was `{one.model_digest[:12]}` and is `{digest[:12]}`"
    if one.preparation != PREPARATION:
        yield f"pictures were prepared in way {one.preparation} and are in way {PREPARATION}"


def _text(value: str | None) -> str:
    return "none" if value is None else f"`{value}`"


def _option(options: Mapping[str, Any], name: str) -> str:
    return f"`{json.dumps(options[name])}`" if name in options else "not set"
