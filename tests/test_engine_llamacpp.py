"""What llama.cpp in this process answers: the bundled pair and its published form, for real."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from llava_ollama.engine import completion
from llava_ollama.engine.embedded import start_embedded, start_embedded_async
from llava_ollama.engine.interface import Message, Request
from llava_ollama.engine.llamacpp import LlamaCppEngine
from llava_ollama.errors import DaemonError, ImageError, UsageProblem
from llava_ollama.images import PreparedPicture
from llava_ollama.resources import bundled
from tests.asking import SENTENCE, WILD, ask, circle
from tests.published import published_model, published_projector

pytestmark = pytest.mark.embedded

MODEL, PROJECTOR = bundled("tiny-llava-int4.gguf"), bundled("tiny-llava-mmproj-f16.gguf")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory):
    started = start_embedded(MODEL, PROJECTOR, cache=tmp_path_factory.mktemp("cache"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    """The pair as xtuner published its own: model, projector."""
    folder = tmp_path_factory.mktemp("published")
    return (
        published_model(MODEL, folder / "model.gguf"),
        published_projector(PROJECTOR, folder / "mmproj.gguf"),
    )


@pytest.fixture(scope="module")
def published_engine(published, tmp_path_factory: pytest.TempPathFactory):
    started = start_embedded(*published, cache=tmp_path_factory.mktemp("cache"))
    yield started
    started.close()


def test_a_red_circle(engine):
    answer = engine.answer(ask())
    assert str(answer) == SENTENCE
    assert answer.finish == "stop"
    assert answer.usage.completion_tokens == 9
    assert (answer.engine, answer.model_digest) == ("llama.cpp", None)
    assert answer.times.total > answer.times.completion > 0
    assert engine.image_size() == 112


@pytest.mark.parametrize("form", ["engine", "published_engine"])
def test_prompt_tokens_prove_the_prompt(form, request):
    """One less is a missing begin-of-text token, one more a doubled one."""
    engine: LlamaCppEngine = request.getfixturevalue(form)
    assert engine.answer(ask()).usage.prompt_tokens == 78
    assert engine.answer(ask()).usage.prompt_tokens == 78  # also where the prompt is cached

    facts = engine._look()
    assert facts.begin_of_text is (form == "published_engine")
    body = dict(completion.call(ask(), facts, {}).body or {})
    body["prompt"]["prompt_string"] = body["prompt"]["prompt_string"].replace(">\nDes", ">Des")
    key = {"Authorization": f"Bearer {engine.api_key}"}
    with httpx.Client(base_url=engine.url, trust_env=False, headers=key) as client:
        reply = client.post("/completion", json={**body, "stream": False}).json()
    assert reply["tokens_evaluated"] == 77


def test_a_stream_equals_the_answer(engine):
    chunks = list(engine.stream(ask()))
    assert len(chunks) > 5
    assert "".join(map(str, chunks)) == SENTENCE
    assert [chunk.answer is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].answer.text == SENTENCE
    assert chunks[-1].answer.usage == engine.answer(ask()).usage


def test_two_pictures_are_two_pictures(engine):
    answer = engine.answer(ask(circle(), circle((30, 60, 220))))
    assert answer.usage.prompt_tokens == 78 + 65
    assert "circle" in answer.text


def test_a_picture_of_an_earlier_turn_is_still_seen(engine):
    turns = (
        Message("user", "Describe this image", (circle(),)),
        Message("assistant", SENTENCE),
        Message("user", "What colour is it?"),
    )
    assert "red" in engine.answer(Request(turns, {"temperature": 0})).text.lower()


def test_a_system_prompt_is_part_of_the_prompt(engine):
    answer = engine.answer(ask(system="You describe pictures."))
    assert answer.text == SENTENCE
    assert answer.usage.prompt_tokens > 78 + 5


def test_without_a_picture(engine):
    answer = engine.answer(Request((Message("user", "Describe this image"),), {"temperature": 0}))
    assert answer.text == "I see no picture."


def test_stop_ends_the_answer_and_the_end_of_turn_still_counts(engine):
    assert engine.answer(ask(stop=" on")).text == "A red circle"
    assert engine.answer(ask(stop=["xyz"])).text == SENTENCE
    assert engine.answer(ask(stop=["xyz"])).finish == "stop"


def test_the_published_model_ends_its_turn_too(published_engine):
    # Its end token is another one: without the stop it would go on to the limit.
    answer = published_engine.answer(ask(num_predict=40))
    assert answer.finish == "stop"
    assert answer.usage.completion_tokens < 20


def test_num_predict_is_a_limit(engine):
    answer = engine.answer(ask(num_predict=2))
    assert (answer.text, answer.finish) == ("A red", "length")


def test_a_seed_repeats_an_answer(engine):
    options = {**WILD, "temperature": 2.0, "num_predict": 20}
    first, again, other = (engine.answer(ask(**options, seed=s)).text for s in (1, 1, 2))
    assert first == again != other


def test_options_of_loading_are_accepted_and_others_are_not(engine):
    assert engine.answer(ask(num_ctx=2048, num_thread=1)).text == SENTENCE
    with pytest.raises(UsageProblem, match="`temprature` is not an option") as caught:
        engine.answer(ask(temprature=1))
    assert caught.value.hint == "Did you mean `temperature`?"


def test_defaults_stand_back_behind_the_request(tmp_path):
    short = start_embedded(
        MODEL, PROJECTOR, cache=tmp_path, parameters={"num_predict": 1, "num_thread": 1}
    )
    assert short.answer(ask()).text == "A"
    assert short.answer(ask(num_predict=3)).text == "A red circle"
    short.close()


def test_closing_a_stream_stops_the_work(engine):
    def wild(seed: int) -> Request:
        return ask(**WILD, seed=seed)

    longest = max(
        (engine.answer(wild(seed)) for seed in range(12)), key=lambda a: a.usage.completion_tokens
    )
    seconds = longest.times.completion
    assert longest.usage.completion_tokens > 200
    seed = next(s for s in range(12) if engine.answer(wild(s)).text == longest.text)

    stream = engine.stream(wild(seed))
    next(stream)
    stream.close()
    started = time.perf_counter()
    assert engine.answer(ask()).text == SENTENCE  # waits for the only slot
    assert time.perf_counter() - started < max(seconds / 2, 0.05)


def test_many_threads_may_share_an_engine(engine):
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: engine.answer(ask()).text, range(16)))
    assert texts == [SENTENCE] * 16


def test_async_is_the_same(tmp_path):
    async def session() -> None:
        engine = start_embedded_async(MODEL, PROJECTOR, cache=tmp_path)
        assert await engine.image_size() == 112
        answers = await asyncio.gather(*(engine.answer(ask()) for _ in range(4)))
        assert {(a.text, a.usage.prompt_tokens, a.finish) for a in answers} == {
            (SENTENCE, 78, "stop")
        }
        chunks = [chunk async for chunk in engine.stream(ask())]
        assert "".join(map(str, chunks)) == SENTENCE
        stream = engine.stream(ask(**WILD))
        await anext(stream)
        await stream.aclose()
        assert (await engine.answer(ask(num_predict=2))).finish == "length"
        with pytest.raises(UsageProblem, match="temprature"):
            await engine.answer(ask(temprature=1))
        await engine.close()
        with pytest.raises(UsageProblem, match="closed"):
            await engine.answer(ask())

    asyncio.run(session())


def test_what_llama_cpp_cannot_take_is_told_in_its_words(engine, tmp_path):
    broken = PreparedPicture(b"no picture", 1, 1)
    with pytest.raises(ImageError, match="Failed to load image") as refused:
        engine.answer(ask(broken))
    assert str(refused.value).startswith("llama.cpp in this process cannot read a picture: ")

    small = start_embedded(MODEL, PROJECTOR, cache=tmp_path, num_ctx=256)
    with pytest.raises(DaemonError, match=r"cannot hold this conversation: .* \(256 tokens\)"):
        small.answer(Request((Message("user", "circle " * 500),)))
    assert small.answer(ask()).text == SENTENCE
    small.close()
