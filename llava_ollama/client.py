"""The API for Python scripts: `Llava` and `AsyncLlava`.

    from llava_ollama import Llava

    llava = Llava("llava-llama3-int4")
    print(llava.ask("photo.jpg", "Describe this image"))

Both have the same methods with the same parameters; a test holds them to it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Self, TypeAlias

from llava_ollama import images
from llava_ollama.engine.interface import Answer, AsyncEngine, Chunk, Engine, Message, Request
from llava_ollama.errors import UsageProblem
from llava_ollama.images import Source
from llava_ollama.settings import Settings

DEFAULT_MODEL = "llava-llama3-int4"
DESCRIBE = "Describe this image"
"""The model card's own prompt."""

Pictures: TypeAlias = "Source | Iterable[Source] | None"
"""One picture, several in their order, or none."""


class Llava:
    """A vision model to ask, in an Ollama daemon unless made by `embedded` or `server`."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        host: str | None = None,
        timeout: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Use the installed model `model` of the daemon at `host` (default: `OLLAMA_HOST`).

        Nothing is sent before the first question. `timeout` is in seconds without a word from
        the daemon. `engine` takes the place of all three.
        """
        self._engine = engine or _ollama(model, host, timeout)

    @classmethod
    def embedded(
        cls,
        name: str | None = None,
        *,
        quant: str | None = None,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> Self:
        """Run llama.cpp in this process: a catalog model by name, or two files of your own.

        A catalog model that is not on this machine is downloaded first.

        Raises:
            EngineUnavailable: the extra `embedded` is not installed.
        """
        from llava_ollama import in_process

        return cls(engine=in_process.start(name, quant, (model, mmproj), threads=threads))

    @classmethod
    def server(cls, url: str, *, timeout: float | None = None) -> Self:
        """Use a running `llama-server` that was started with `--mmproj`."""
        from llava_ollama.engine.llamacpp import LlamaCppEngine

        return cls(engine=LlamaCppEngine(url, timeout=timeout or Settings.read().timeout))

    def ask(
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Ask one question about one or more pictures.

        A picture is a path, bytes, a file object, a PIL image, or `-` for standard input. It is
        decoded here, turned upright and made RGB before it is sent. `options` are Ollama's model
        options: `temperature`, `seed`, `num_predict`, ...

        Raises:
            ImageError: a picture cannot be read.
            UsageProblem: the model has no vision, or an option is unknown.
            LlavaOllamaError: see `llava_ollama.errors` for all that can go wrong at the daemon.
        """
        return self._engine.answer(self._request(pictures, prompt, system, options))

    def stream(
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Chunk]:
        """Ask as `ask` does, and yield the answer as it is made.

        Closing the iterator stops the model's work. The last chunk carries the whole `Answer`.
        """
        yield from self._engine.stream(self._request(pictures, prompt, system, options))

    def chat(self, *, system: str | None = None, options: Mapping[str, Any] | None = None) -> Chat:
        """Begin a conversation that keeps its turns."""
        return Chat(self, system=system, options=options)

    def close(self) -> None:
        """Release connections, and the model where it lives in this process."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _request(
        self,
        pictures: Pictures,
        prompt: str,
        system: str | None,
        options: Mapping[str, Any] | None,
    ) -> Request:
        sources = _sources(pictures)
        side = self._engine.image_size() if sources else 0
        return _request([], _turn(sources, prompt, side), system, options)


class Chat:
    """A conversation; a question that fails is not kept."""

    def __init__(
        self,
        llava: Llava,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._llava = llava
        self._system = system
        self._options = options
        self.turns: list[Message] = []
        """The user's and the assistant's turns so far."""

    def ask(self, prompt: str, pictures: Pictures = None) -> Answer:
        """Ask the next question; earlier turns and their pictures are seen again."""
        *_, last = self.stream(prompt, pictures)
        return _whole(last)

    def stream(self, prompt: str, pictures: Pictures = None) -> Iterator[Chunk]:
        """Ask the next question and yield the answer as it is made."""
        sources = _sources(pictures)
        engine = self._llava._engine  # noqa: SLF001 - a chat is part of its client
        turn = _turn(sources, prompt, engine.image_size() if sources else 0)
        for chunk in engine.stream(_request(self.turns, turn, self._system, self._options)):
            if chunk.answer is not None:
                self.turns += [turn, Message("assistant", chunk.answer.text)]
            yield chunk


class AsyncLlava:
    """The same as `Llava`, for asyncio."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        host: str | None = None,
        timeout: float | None = None,
        engine: AsyncEngine | None = None,
    ) -> None:
        """See `Llava`."""
        self._engine = engine or _async_ollama(model, host, timeout)

    @classmethod
    def embedded(
        cls,
        name: str | None = None,
        *,
        quant: str | None = None,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> Self:
        """See `Llava.embedded`; the model is loaded before this returns."""
        from llava_ollama import in_process

        return cls(engine=in_process.start_async(name, quant, (model, mmproj), threads=threads))

    @classmethod
    def server(cls, url: str, *, timeout: float | None = None) -> Self:
        """See `Llava.server`."""
        from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine

        return cls(engine=AsyncLlamaCppEngine(url, timeout=timeout or Settings.read().timeout))

    async def ask(
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Answer:
        """See `Llava.ask`."""
        return await self._engine.answer(await self._request(pictures, prompt, system, options))

    async def stream(
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Chunk]:
        """See `Llava.stream`."""
        request = await self._request(pictures, prompt, system, options)
        async for chunk in self._engine.stream(request):
            yield chunk

    def chat(
        self, *, system: str | None = None, options: Mapping[str, Any] | None = None
    ) -> AsyncChat:
        """See `Llava.chat`."""
        return AsyncChat(self, system=system, options=options)

    async def close(self) -> None:
        """See `Llava.close`."""
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _request(
        self,
        pictures: Pictures,
        prompt: str,
        system: str | None,
        options: Mapping[str, Any] | None,
    ) -> Request:
        sources = _sources(pictures)
        side = await self._engine.image_size() if sources else 0
        # Decoding a large picture takes a tenth of a second: other tasks go on meanwhile.
        turn = await asyncio.to_thread(_turn, sources, prompt, side)
        return _request([], turn, system, options)


class AsyncChat:
    """The same as `Chat`, for asyncio."""

    def __init__(
        self,
        llava: AsyncLlava,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._llava = llava
        self._system = system
        self._options = options
        self.turns: list[Message] = []

    async def ask(self, prompt: str, pictures: Pictures = None) -> Answer:
        """See `Chat.ask`."""
        last = None
        async for chunk in self.stream(prompt, pictures):
            last = chunk
        return _whole(last)

    async def stream(self, prompt: str, pictures: Pictures = None) -> AsyncIterator[Chunk]:
        """See `Chat.stream`."""
        sources = _sources(pictures)
        engine = self._llava._engine  # noqa: SLF001 - a chat is part of its client
        side = await engine.image_size() if sources else 0
        turn = await asyncio.to_thread(_turn, sources, prompt, side)
        async for chunk in engine.stream(_request(self.turns, turn, self._system, self._options)):
            if chunk.answer is not None:
                self.turns += [turn, Message("assistant", chunk.answer.text)]
            yield chunk


def _ollama(model: str, host: str | None, timeout: float | None) -> Engine:
    from llava_ollama.engine.ollama import OllamaEngine

    settings = Settings.read(host=host)
    return OllamaEngine(model, settings.host, timeout=timeout or settings.timeout)


def _async_ollama(model: str, host: str | None, timeout: float | None) -> AsyncEngine:
    from llava_ollama.engine.ollama import AsyncOllamaEngine

    settings = Settings.read(host=host)
    return AsyncOllamaEngine(model, settings.host, timeout=timeout or settings.timeout)


def _sources(pictures: Pictures) -> list[Source]:
    if pictures is None:
        return []
    if isinstance(pictures, str | bytes | bytearray | memoryview | os.PathLike):
        return [pictures]
    # PIL images and files are iterable or not, by their kind; they are one picture either way.
    if hasattr(pictures, "read") or hasattr(pictures, "getbbox"):
        return [pictures]  # type: ignore[list-item] # told apart by what they can do
    if isinstance(pictures, Iterable):
        return list(pictures)
    raise UsageProblem(
        f"`{type(pictures).__name__}` is not a picture",
        hint="Give a path, bytes, a file object or a PIL image, or a list of them",
    )


def _turn(sources: list[Source], prompt: str, side: int) -> Message:
    if not prompt.strip() and not sources:
        raise UsageProblem("there is neither a picture nor a question", hint="Give a prompt")
    return Message("user", prompt, tuple(images.prepare(source, side) for source in sources))


def _request(
    earlier: list[Message], turn: Message, system: str | None, options: Mapping[str, Any] | None
) -> Request:
    first = (Message("system", system),) if system and system.strip() else ()
    return Request((*first, *earlier, turn), dict(options or {}))


def _whole(last: Chunk | None) -> Answer:
    """Return the answer of the last chunk; engines raise where a stream has none."""
    assert last is not None  # noqa: S101 - an engine's promise, held by its conformance suite
    assert last.answer is not None  # noqa: S101 - likewise
    return last.answer
