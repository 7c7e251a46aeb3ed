"""Answers that are documents. The tiny model knows no JSON: a grammar makes it write some, so that
these tests prove form, checking and repair, and nothing of what is said."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

from llava_ollama import AsyncLlava, Extracted, Llava
from llava_ollama.engine.interface import Answer, Request, Times, Usage
from llava_ollama.errors import InvalidAnswer, UsageProblem
from llava_ollama.extract import form_of
from llava_ollama.tiny.shapes import Shape, draw
from tests.places import Place

RED = draw(Shape("red", "circle", "white"))


class Seen(BaseModel):
    colour: Literal["red", "green", "blue"] = Field(description="of the shape")
    shape: Literal["circle", "square"]


class Endless(BaseModel):
    """What pydantic takes, and JSON does not."""

    size: float = math.inf


@dataclasses.dataclass
class Counted:
    number: Literal[1, 2, 3]


Several = Annotated[list[Seen], Field(min_length=1, max_length=2)]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"const": 1}},
    "required": ["colour", "count"],
}


FEATURE: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "Feature"}, "properties": SCHEMA},
    "required": ["type", "properties"],
}
"""As in GeoJSON, where properties are called as keywords of a schema are."""


class Scripted:
    """An engine that says what it is given, and keeps what it is asked."""

    name = "scripted"

    def __init__(self, *texts: str, finish: Literal["stop", "length"] = "stop") -> None:
        self.requests: list[Request] = []
        self._texts, self._finish = list(texts), finish

    def image_size(self) -> int:
        return 112

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        usage, times = Usage(1, 1), Times(0, 0, 0, 0)
        return Answer(self._texts.pop(0), self._finish, usage, times, None, self.name)

    def stream(self, request: Request) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


class AsyncScripted(Scripted):
    async def image_size(self) -> int:  # type: ignore[override] # the other kind of engine
        return 112

    async def answer(self, request: Request) -> Answer:  # type: ignore[override] # likewise
        return super().answer(request)

    async def close(self) -> None:  # type: ignore[override] # likewise
        pass


def extract(kind: str, engine: Any, *question: Any, **options: Any) -> Extracted[Any]:
    if kind == "plain":
        return Llava(engine=engine).extract(*question, **options)

    async def session() -> Extracted[Any]:
        return await AsyncLlava(engine=engine).extract(*question, **options)

    return asyncio.run(session())


@pytest.fixture(params=["plain", "async"])
def kind(request) -> str:
    return str(request.param)


def scripted(kind: str, *texts: str, **keywords: Any) -> Scripted:
    return (Scripted if kind == "plain" else AsyncScripted)(*texts, **keywords)


GOOD = '{"colour": "red",\n "shape": "circle"}'
PINK = '{"colour": "pink", "shape": "circle"}'


def test_a_right_answer_is_taken(kind):
    engine = scripted(kind, GOOD)
    got = extract(kind, engine, RED, Seen, "What is it?", system="Be brief.")
    assert got.value == Seen(colour="red", shape="circle")
    assert (got.answer.text, got.repaired) == (GOOD, False)
    (request,) = engine.requests
    assert request.options == {"temperature": 0, "num_predict": 1024}
    assert request.schema == Seen.model_json_schema() | {"additionalProperties": False}
    system, turn = request.messages
    assert system.text == "Be brief."
    assert turn.text.startswith("What is it?\n\nAnswer with a JSON document")
    assert "of the shape" in turn.text
    assert len(turn.pictures) == 1


def test_a_wrong_answer_is_asked_for_once_more(kind):
    engine = scripted(kind, PINK, GOOD)
    got = extract(kind, engine, RED, Seen, options={"temperature": 1.0})
    assert got.value == Seen(colour="red", shape="circle")
    assert got.repaired
    first, again = engine.requests
    assert again.options == first.options == {"temperature": 1.0, "num_predict": 1024}
    assert again.schema == first.schema
    *before, said, wrong = again.messages
    assert tuple(before) == first.messages
    assert (said.role, said.text) == ("assistant", PINK)
    assert "colour: Input should be 'red', 'green' or 'blue'" in wrong.text


@pytest.mark.parametrize("wanted", [Seen, {**SCHEMA, "additionalProperties": False}])
def test_two_wrong_answers_are_an_error_with_the_text(kind, wanted):
    engine = scripted(kind, "What a nice picture!", PINK)
    with pytest.raises(InvalidAnswer, match=r"colour") as caught:
        extract(kind, engine, RED, wanted)
    assert caught.value.text == PINK
    assert "colour" in caught.value.complaints[0]
    assert caught.value.hint
    assert len(engine.requests) == 2


def test_an_answer_that_reached_its_limit_is_not_repaired(kind):
    engine = scripted(kind, GOOD[:20], finish="length")
    with pytest.raises(InvalidAnswer, match="limit") as caught:
        extract(kind, engine, RED, Seen)
    assert caught.value.text == GOOD[:20]
    assert "num_predict" in (caught.value.hint or "")
    assert len(engine.requests) == 1


def test_a_whole_document_at_the_limit_is_taken(kind):
    assert extract(kind, scripted(kind, GOOD, finish="length"), RED, Seen).value.colour == "red"


@pytest.mark.parametrize("text", ["[NaN]", "[1e999]", "[" * 100_000, "[" + "9" * 5000 + "]"])
def test_what_json_cannot_carry_is_wrong(text):
    with pytest.raises(InvalidAnswer):
        extract("plain", Scripted(text, text), RED, {"type": "array"})


@pytest.mark.parametrize("wanted", [Llava, 5, {"type": "strin"}, [], Endless], ids=str)
def test_what_asks_for_nothing(kind, wanted):
    engine = scripted(kind)
    with pytest.raises(UsageProblem) as caught:
        extract(kind, engine, RED, wanted)
    assert caught.value.hint
    assert engine.requests == []


# Real engines


@pytest.fixture(scope="module")
def llava(place: Place) -> Iterator[Llava]:
    with Llava(engine=place.plain(*place.arguments, **place.keywords)) as client:
        yield client


@pytest.mark.parametrize("wanted", [Seen, Counted, Several, Literal["a", "b"], FEATURE])
def test_a_model_that_knows_no_json_writes_what_is_asked_for(llava: Llava, wanted):
    got = llava.extract(RED, wanted)
    assert json.loads(got.answer.text) == (
        got.value if isinstance(wanted, dict) else _plain(got.value)
    )
    assert not got.repaired
    assert got.answer.finish == "stop"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return value.model_dump()
    return dataclasses.asdict(value) if isinstance(value, Counted) else value


def refusing(times: int) -> Callable[[str], str]:
    """Return a validator that finds so many answers wrong, whatever they say."""
    left = [times]

    def judge(colour: str) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ValueError("another colour is meant")
        return colour

    return judge


def test_a_model_is_told_what_was_wrong(llava: Llava):
    plain = llava.extract(RED, Seen)
    judge = refusing(1)

    class Judged(Seen):
        check = field_validator("colour")(judge)

    got = llava.extract(RED, Judged)
    assert got.repaired
    # The whole first answer and the complaint stand in the second prompt.
    more = got.answer.usage.prompt_tokens - plain.answer.usage.prompt_tokens
    assert more > plain.answer.usage.completion_tokens


def test_a_model_that_cannot_please(llava: Llava):
    class Never(Seen):
        check = field_validator("colour")(refusing(99))

    with pytest.raises(InvalidAnswer, match="another colour is meant") as caught:
        llava.extract(RED, Never)
    assert set(json.loads(caught.value.text)) == {"colour", "shape"}


def test_a_limit_in_the_middle_of_a_document(llava: Llava):
    with pytest.raises(InvalidAnswer, match="limit") as caught:
        llava.extract(RED, Seen, options={"num_predict": 3})
    assert caught.value.text.strip().startswith("{")


@pytest.mark.parametrize("much", [{"type": "string", "maxLength": 5000}, {"type": "integer"}])
def test_bounds_that_are_too_much_for_a_grammar_are_left_to_the_check(llava: Llava, much):
    """One character more than 2,000 would kill the runner of 0.24.0."""
    wanted = {"type": "array", "items": much, "minItems": 1, "maxItems": 5000}
    with pytest.raises(InvalidAnswer) as caught:
        llava.extract(RED, {**wanted, "minItems": 4000}, options={"num_predict": 20})
    assert caught.value.text.startswith("[")


def test_a_prompt_in_place_of_the_schema_is_told():
    with pytest.raises(UsageProblem) as caught:
        form_of("What colour is it?")
    assert "`What colour is it?` is neither" in caught.value.message
    assert "then the prompt" in str(caught.value.hint)
