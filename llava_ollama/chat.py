"""Conversations that keep their turns, and the user's turn that the clients share with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing, closing
from typing import Any

from llava_ollama import turns
from llava_ollama.engine.interface import Answer, AsyncEngine, Chunk, Engine, Message, Request
from llava_ollama.images import Decode, Vision
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.turns import Pictures


class Chat:
    """A conversation; a question that fails is not kept."""

    def __init__(  # noqa: PLR0913 - keywords, each of them something a caller may know
        self,
        engine: Engine,
        reporter: Reporter = SILENT,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> None:
        self._engine = engine
        self._reporter = reporter
        self._system = system
        self._options = options
        self._trusted = trusted
        self._decode = decode
        self.turns: list[Message] = []
        """The user's and the assistant's turns so far."""

    def ask(self, prompt: str, pictures: Pictures = None) -> Answer:
        """Ask the next question; earlier turns and their pictures are seen again."""
        *_, last = self.stream(prompt, pictures)
        return _whole(last)

    def stream(self, prompt: str, pictures: Pictures = None) -> Generator[Chunk]:
        """Ask the next question and yield the answer as it is made."""
        turn = user_turn(self._engine, self._reporter, pictures, prompt, decode=self._decode)
        request = self._request(turn)
        with closing(self._engine.stream(request)) as chunks:
            for chunk in chunks:
                if chunk.answer is not None:
                    self.turns += [turn, Message("assistant", chunk.answer.text)]
                yield chunk

    def _request(self, turn: Message) -> Request:
        return turns.request_of(
            self.turns, turn, self._system, self._options, trusted=self._trusted
        )


class AsyncChat:
    """The same as `Chat`, for asyncio."""

    def __init__(  # noqa: PLR0913 - keywords, each of them something a caller may know
        self,
        engine: AsyncEngine,
        reporter: Reporter = SILENT,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> None:
        self._engine = engine
        self._reporter = reporter
        self._system = system
        self._options = options
        self._trusted = trusted
        self._decode = decode
        self.turns: list[Message] = []

    async def ask(self, prompt: str, pictures: Pictures = None) -> Answer:
        """See `Chat.ask`."""
        last = None
        async for chunk in self.stream(prompt, pictures):
            last = chunk
        return _whole(last)

    async def stream(self, prompt: str, pictures: Pictures = None) -> AsyncGenerator[Chunk]:
        """See `Chat.stream`."""
        turn = await async_user_turn(
            self._engine, self._reporter, pictures, prompt, decode=self._decode
        )
        request = self._request(turn)
        async with aclosing(self._engine.stream(request)) as chunks:
            async for chunk in chunks:
                if chunk.answer is not None:
                    self.turns += [turn, Message("assistant", chunk.answer.text)]
                yield chunk

    def _request(self, turn: Message) -> Request:
        return turns.request_of(
            self.turns, turn, self._system, self._options, trusted=self._trusted
        )


def user_turn(
    engine: Engine,
    reporter: Reporter,
    pictures: Pictures,
    prompt: str,
    *,
    decode: Decode = "exact",
) -> Message:
    """Return the user's turn; a model without vision is refused before a picture is read."""
    sources = turns.sources_of(pictures, prompt)
    if not sources:
        return Message("user", prompt)
    vision = Vision(engine.image_size())
    turn = turns.prepared(sources, prompt, vision, decode)
    turns.tell(reporter, sources, turn)
    return turn


async def async_user_turn(
    engine: AsyncEngine,
    reporter: Reporter,
    pictures: Pictures,
    prompt: str,
    *,
    decode: Decode = "exact",
) -> Message:
    """See `user_turn`."""
    sources = turns.sources_of(pictures, prompt)
    if not sources:
        return Message("user", prompt)
    vision = Vision(await engine.image_size())
    # Decoding a large picture takes a tenth of a second: other tasks go on meanwhile.
    turn = await asyncio.to_thread(turns.prepared, sources, prompt, vision, decode)
    turns.tell(reporter, sources, turn)
    return turn


def _whole(last: Chunk | None) -> Answer:
    """Return the answer of the last chunk; engines raise where a stream has none."""
    assert last is not None  # noqa: S101 - an engine's promise, held by its conformance suite
    assert last.answer is not None  # noqa: S101 - likewise
    return last.answer
