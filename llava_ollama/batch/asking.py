"""One question about one picture: what is sent, and what of the answer is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_ollama import turns
from llava_ollama.batch.work import Ask, Question
from llava_ollama.engine.interface import Answer, AsyncEngine, Finish, Message, Request
from llava_ollama.extract import OPTIONS, Form, form_of
from llava_ollama.images import PreparedPicture

GREEDY: Mapping[str, Any] = {"temperature": 0}
"""What holds unless an `Ask` says otherwise."""


def is_repeatable(ask: Ask) -> bool:
    """Whether the same picture gets the same answer, so that equal ones are asked once."""
    return bool({**GREEDY, **ask.options}["temperature"] == 0)


@dataclass(frozen=True)
class Said:
    """An answer, as far as it is kept; `tokens` are those of its repair as well."""

    text: str
    finish: Finish
    tokens: int


@dataclass
class Asker:
    """Puts questions; a schema is made ready once for all pictures."""

    _forms: dict[int, Form[Any]] = field(default_factory=dict)

    async def ask(self, engine: AsyncEngine, question: Question, picture: PreparedPicture) -> Said:
        """Return what the model says of the picture.

        Raises:
            InvalidAnswer: also its second answer does not fit the schema.
            LlavaOllamaError: whatever an engine raises.
        """
        ask = question.ask
        if ask.schema is None:
            answer = await engine.answer(_request(ask, ask.prompt, picture, GREEDY))
            return Said(answer.text.strip(), answer.finish, answer.usage.completion_tokens)
        form = self._form(question.id, ask.schema)
        tokens = 0

        async def counted(request: Request) -> Answer:
            nonlocal tokens
            answer = await engine.answer(request)
            tokens += answer.usage.completion_tokens
            return answer

        request = _request(ask, form.asked(ask.prompt), picture, OPTIONS)
        found = await form.extract_async(request, counted)
        return Said(found.answer.text.strip(), found.answer.finish, tokens)

    def _form(self, number: int, schema: Mapping[str, Any]) -> Form[Any]:
        if number not in self._forms:
            self._forms[number] = form_of(schema)
        return self._forms[number]


def _request(
    ask: Ask, prompt: str, picture: PreparedPicture, defaults: Mapping[str, Any]
) -> Request:
    turn = Message("user", prompt, (picture,))
    return turns.request_of([], turn, ask.system, {**defaults, **ask.options})
