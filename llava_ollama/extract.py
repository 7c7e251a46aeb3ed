"""Answers that are documents: asked for with a schema, checked, and asked for once more if wrong.

The grammar that an engine makes of a schema keeps an answer's form. What a grammar cannot say (the
bounds of a number, a validator of your own) is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from llava_ollama import schema
from llava_ollama.engine.interface import Answer, Message, Request
from llava_ollama.errors import InvalidAnswer, UsageProblem

T = TypeVar("T")

OPTIONS: Mapping[str, Any] = {"temperature": 0, "num_predict": 1024}
"""What holds unless the caller says otherwise. Without a limit, a text for which the schema has
none may be written until the context is full."""
_ASKED = "{prompt}\n\nAnswer with a JSON document that fits this schema: {schema}"
_AGAIN = "That is not right: {complaints}. Answer again, with the corrected JSON document only."
_MOST_COMPLAINTS = 5
"""In one message: a model that must mend more than that begins anew anyway."""


@dataclass(frozen=True)
class Extracted(Generic[T]):
    """A document that was read off a picture, and the answer that it came in.

    `repaired` says that the first answer did not fit, and that the model was asked once more.
    """

    value: T
    answer: Answer
    repaired: bool = False


@dataclass(frozen=True)
class Form(Generic[T]):
    """What is asked for: its JSON schema, and how a text is read, or what is wrong with it."""

    schema: schema.Schema
    read: Callable[[str], tuple[T | None, list[str]]]

    def asked(self, prompt: str) -> str:
        """Return the prompt with the schema, since a grammar tells a model nothing beforehand."""
        text = json.dumps(self.schema, ensure_ascii=False, separators=(",", ":"))
        return _ASKED.format(prompt=prompt, schema=text)

    def extract(self, request: Request, answer: Callable[[Request], Answer]) -> Extracted[T]:
        """Return the document that `request` asks for.

        Raises:
            InvalidAnswer: there is none, also after one question more.
        """
        steps = self._steps(request)
        asked = next(steps)
        while True:
            try:
                asked = steps.send(answer(asked))
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return] # what `_steps` returns

    async def extract_async(
        self, request: Request, answer: Callable[[Request], Awaitable[Answer]]
    ) -> Extracted[T]:
        """See `extract`."""
        steps = self._steps(request)
        asked = next(steps)
        while True:
            answered = await answer(asked)
            try:
                asked = steps.send(answered)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return] # likewise

    def _steps(self, request: Request) -> Generator[Request, Answer, Extracted[T]]:
        """Yield what to ask, take the answers, and return the document."""
        request = replace(request, schema=schema.for_engines(self.schema))
        answer = yield request
        try:
            return Extracted(self._value(answer), answer)
        except InvalidAnswer as exc:
            if answer.finish == "length":
                raise
            again = _AGAIN.format(complaints="; ".join(exc.complaints[:_MOST_COMPLAINTS]))
        turns = Message("assistant", answer.text), Message("user", again)
        answer = yield replace(request, messages=(*request.messages, *turns))
        return Extracted(self._value(answer), answer, repaired=True)

    def _value(self, answer: Answer) -> T:
        value, complaints = self.read(answer.text)
        if not complaints:
            return value  # type: ignore[return-value] # without complaints it is a T
        if answer.finish == "length":
            raise InvalidAnswer(
                "the answer reached its limit of tokens before its document was complete",
                hint="Allow more of them (`num_predict`, on the command line `--max-tokens`), or "
                "bound the schema's texts and lists (`maxLength`, `maxItems`)",
                text=answer.text,
                complaints=tuple(complaints),
            )
        raise InvalidAnswer(
            f"the answer does not fit the schema: {complaints[0]}",
            hint="The error's `text` has what the model said; ask for less, or say what is meant",
            text=answer.text,
            complaints=tuple(complaints),
        )


def form_of(wanted: Any) -> Form[Any]:
    """Return what a pydantic model, another type that pydantic knows, or a JSON schema asks for.

    Raises:
        UsageProblem: it is none of them, or an answer cannot be held to it.
    """
    if isinstance(wanted, str):
        raise UsageProblem(
            f"`{schema.shortened(wanted)}` is neither a pydantic model nor a schema",
            hint="`extract` takes the pictures, then what is wanted, then the prompt",
        )
    return _of_schema(schema.checked(wanted)) if isinstance(wanted, Mapping) else _of_type(wanted)


def _of_schema(kept: schema.Schema) -> Form[Any]:
    judged = schema.complaints(kept)

    def read(text: str) -> tuple[Any, list[str]]:
        try:
            value = schema.parse(text)
            return value, judged(value)
        except (ValueError, RecursionError) as exc:
            return None, [f"{schema.DOCUMENT}: {exc}"]

    return Form(kept, read)


def _of_type(wanted: Any) -> Form[Any]:
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    def read(text: str) -> tuple[Any, list[str]]:
        try:
            return adapter.validate_json(text), []
        except ValidationError as exc:
            return None, [
                f"{'.'.join(map(str, error['loc'])) or schema.DOCUMENT}: {error['msg']}"
                for error in exc.errors(include_url=False, include_context=False)
            ]

    try:
        adapter = TypeAdapter(wanted)
        return Form(schema.plain(adapter.json_schema()), read)
    except (PydanticUserError, ValueError) as exc:  # ValueError: metadata that is no JSON
        reason = str(exc).splitlines()[0].rstrip(".")
        raise UsageProblem(
            f"`{getattr(wanted, '__name__', wanted)}` asks for no JSON document: {reason}",
            hint="Give a pydantic model, or a JSON schema as a dict",
        ) from exc
