"""Asking again: what is busy, loading or restarting is; a crash is not, nor a begun answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from llava_ollama import Answer, AsyncLlava, Chunk, Llava
from llava_ollama.engine.interface import Request, Times, Usage
from llava_ollama.engine.persistent import AsyncPersistentEngine, PersistentEngine
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    ImageError,
    IncompleteAnswer,
    LlavaOllamaError,
    ModelLoading,
    RunnerCrashed,
)
from tests.asking import ask
from tests.daemons.running import RunningDaemon
from tests.installing import Listening, install

T = TypeVar("T")

WHOLE = Answer("A red", "stop", Usage(1, 2), Times(0, 0, 0, 0), None, "failing")


class Failing:
    """An engine that fails as it is told, and then answers; `after` so many chunks."""

    name = "failing"

    def __init__(self, *failures: LlavaOllamaError, after: int = 0) -> None:
        self._failures, self._after = list(failures), after
        self.asked = self.closed = 0

    def _meet(self) -> None:
        self.asked += 1
        if self._failures:
            raise self._failures.pop(0)

    def image_size(self) -> int:
        self._meet()
        return 112

    def answer(self, _: Request) -> Answer:
        self._meet()
        return WHOLE

    def stream(self, _: Request) -> Generator[Chunk]:
        try:
            if not self._after:
                self._meet()
            yield Chunk("A")
            if self._after:
                self._meet()
            yield Chunk(" red", WHOLE)
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


class AsyncFailing:
    """The same, for asyncio."""

    name = "failing"

    def __init__(self, inner: Failing) -> None:
        self._inner = inner

    async def image_size(self) -> int:
        return self._inner.image_size()

    async def answer(self, request: Request) -> Answer:
        return self._inner.answer(request)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        inner = self._inner.stream(request)
        try:
            for chunk in inner:
                yield chunk
        finally:
            inner.close()

    async def close(self) -> None:
        pass


WAYS = ("size", "answer", "stream", "async size", "async answer", "async stream")


def use(way: str, failing: Failing, seconds: float = 30.0, reporter: Any = None) -> Any:
    """Ask in this way; return what came."""
    reporter = reporter or Listening()
    if not way.startswith("async"):
        engine = PersistentEngine(failing, seconds, reporter)
        ways: dict[str, Callable[[], Any]] = {
            "size": engine.image_size,
            "answer": lambda: engine.answer(ask()),
            "stream": lambda: list(engine.stream(ask())),
        }
        return ways[way]()

    async def session() -> Any:
        engine = AsyncPersistentEngine(AsyncFailing(failing), seconds, reporter)
        if way == "async size":
            return await engine.image_size()
        if way == "async answer":
            return await engine.answer(ask())
        return [chunk async for chunk in engine.stream(ask())]

    return asyncio.run(session())


def refused() -> DaemonUnreachable:
    error = DaemonUnreachable("nobody there")
    error.__cause__ = ConnectionRefusedError()
    return error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [DaemonBusy, ModelLoading])
def test_what_is_busy_or_loading_is_asked_again(way, error):
    failing, heard = Failing(error("not now"), error("not now")), Listening()
    got = use(way, failing, reporter=heard)
    assert got in (112, WHOLE, [Chunk("A"), Chunk(" red", WHOLE)])
    assert failing.asked == 3
    assert heard.notes == ["not now; asking again"]


OTHERS = [
    RunnerCrashed("it died"),
    DaemonTimeout("silence"),
    DaemonError("no"),
    DaemonUnreachable("a stranger"),
    refused(),
    ImageError("no picture"),
    IncompleteAnswer("cut", text="A"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", OTHERS, ids=lambda e: type(e).__name__)
def test_everything_else_is_not(way, error):
    failing = Failing(error)
    with pytest.raises(type(error)) as caught:
        use(way, failing)
    assert caught.value is error
    assert failing.asked == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_daemon_that_stays_busy_is_given_up(way):
    failing = Failing(*(DaemonBusy("not now") for _ in range(99)))
    begun = time.monotonic()
    with pytest.raises(DaemonBusy, match="not now"):
        use(way, failing, seconds=0.9)
    assert 1 < failing.asked < 9
    assert time.monotonic() - begun >= 0.2


@pytest.mark.parametrize("way", WAYS)
def test_who_wants_no_second_question_gets_none(way):
    failing = Failing(DaemonBusy("not now"))
    with pytest.raises(DaemonBusy):
        use(way, failing, seconds=0)
    assert failing.asked == 1


@pytest.mark.parametrize("way", ["stream", "async stream"])
def test_what_fails_after_its_first_word_has_failed(way):
    failing = Failing(DaemonBusy("not now"), after=1)
    with pytest.raises(DaemonBusy):
        use(way, failing)
    assert failing.asked == failing.closed == 1


def test_a_daemon_that_was_there_before_is_waited_for():
    failing = Failing()
    engine = PersistentEngine(failing, 30)
    assert engine.image_size() == 112
    failing._failures = [refused(), refused()]
    assert engine.answer(ask()) == WHOLE
    assert failing.asked == 4


def test_closing_a_stream_closes_the_engines_own():
    failing = Failing()
    stream = PersistentEngine(failing, 30).stream(ask())
    next(stream)
    stream.close()
    assert failing.closed == 1

    async def session() -> None:
        engine = AsyncPersistentEngine(AsyncFailing(failing), 30)
        async with aclosing(engine.stream(ask())) as chunks:
            await anext(chunks)
        assert failing.closed == 2

    asyncio.run(session())


# Real daemons, asked without pictures: 0.24.0 needs 4 s for its first one


NOTHING = "I see no picture."


@pytest.fixture
def apart(ollama: RunningDaemon, tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon of one's own that lets one question wait; the tiny model is not loaded yet."""
    few = {"OLLAMA_MAX_QUEUE": "1", "OLLAMA_NUM_PARALLEL": "1"}
    daemon = RunningDaemon(ollama.version, tmp_path, ollama.binary, more=few).start()
    install(daemon.host, tmp_path, "tiny")
    yield daemon
    daemon.stop()


async def crowd(host: str, **keywords: Any) -> list[str]:
    """Ask six times at once; return the answers and what else came."""
    async with AsyncLlava("tiny", host=host, **keywords) as llava:
        asked = (llava.ask(None, options={"temperature": 0}) for _ in range(6))
        got = await asyncio.gather(*asked, return_exceptions=True)
    return [type(one).__name__ if isinstance(one, DaemonError) else str(one) for one in got]


@pytest.mark.ollama
def test_a_crowd_is_answered_one_after_the_other(apart):
    """Measured: while a model is loaded, all but two find the queue full."""
    got = asyncio.run(crowd(apart.host, retry_for=0))
    assert set(got) == {NOTHING, "DaemonBusy"}
    apart.stop()
    apart.start()
    heard = Listening()
    assert asyncio.run(crowd(apart.host, reporter=heard)) == [NOTHING] * 6
    assert set(heard.notes) == {
        f"the daemon at {apart.host} has too many requests waiting; asking again"
    }


@pytest.mark.ollama
def test_a_daemon_that_is_restarted_and_one_that_gives_up_loading(apart):
    with Llava("tiny", host=apart.host) as llava:
        assert str(llava.ask(None, options={"temperature": 0})) == NOTHING
        apart.stop()
        restart = threading.Timer(0.3, apart.start)
        restart.start()
        assert str(llava.ask(None, options={"temperature": 0})) == NOTHING
        restart.join()
    apart.stop()
    apart.more["OLLAMA_LOAD_TIMEOUT"] = "1ms"
    apart.start()
    with Llava("tiny", host=apart.host, retry_for=0) as llava, pytest.raises(ModelLoading) as late:
        llava.ask(None)
    assert "timed out waiting for" in str(late.value)
    assert "OLLAMA_LOAD_TIMEOUT" in (late.value.hint or "")
