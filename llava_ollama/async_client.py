"""`AsyncLlava`: what `Llava` is, for asyncio."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Self, TypeVar, overload

from llava_ollama import turns
from llava_ollama.chat import AsyncChat, async_user_turn
from llava_ollama.client import DEFAULT_MODEL, DESCRIBE, patience
from llava_ollama.engine.interface import Answer, AsyncEngine, Chunk
from llava_ollama.engine.persistent import RETRY_FOR, AsyncPersistentEngine
from llava_ollama.extract import OPTIONS, Extracted, form_of
from llava_ollama.images import Decode, Vision
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.settings import Settings
from llava_ollama.turns import Pictures

T = TypeVar("T")


class AsyncLlava:
    """The same as `Llava`, for asyncio."""

    def __init__(  # noqa: PLR0913 - as in `Llava`
        self,
        model: str = DEFAULT_MODEL,
        *,
        host: str | None = None,
        timeout: float | None = None,
        retry_for: float = RETRY_FOR,
        engine: AsyncEngine | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        """See `Llava`."""
        self._engine = engine or AsyncPersistentEngine(
            _async_ollama(model, host, timeout), retry_for, reporter
        )
        self._reporter = reporter

    @classmethod
    def embedded(  # noqa: PLR0913 - see Llava.embedded
        cls,
        name: str | None = None,
        *,
        quant: str | None = None,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        mend: bool = False,
        reporter: Reporter = SILENT,
    ) -> Self:
        """See `Llava.embedded`; the model is loaded before this returns."""
        from llava_ollama import in_process

        which = in_process.Which(name, quant, model, mmproj, mend=mend)
        engine = in_process.start_async(which, threads=threads, reporter=reporter)
        return cls(engine=engine, reporter=reporter)

    @classmethod
    def server(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        retry_for: float = RETRY_FOR,
        reporter: Reporter = SILENT,
    ) -> Self:
        """See `Llava.server`."""
        from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine

        settings = Settings.read()
        key = api_key or settings.api_key
        engine = AsyncLlamaCppEngine(url, timeout=patience(timeout, settings), api_key=key)
        return cls(engine=AsyncPersistentEngine(engine, retry_for, reporter), reporter=reporter)

    async def ask(  # noqa: PLR0913 - keywords, each of them something a caller may know
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Answer:
        """See `Llava.ask`."""
        turn = await async_user_turn(self._engine, self._reporter, pictures, prompt, decode=decode)
        request = turns.request_of([], turn, system, options, trusted=trusted)
        return await self._engine.answer(request)

    async def stream(  # noqa: PLR0913 - keywords, each of them something a caller may know
        self,
        pictures: Pictures,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> AsyncGenerator[Chunk]:
        """See `Llava.stream`."""
        turn = await async_user_turn(self._engine, self._reporter, pictures, prompt, decode=decode)
        request = turns.request_of([], turn, system, options, trusted=trusted)
        # Without `aclosing` the work would go on until the garbage collector finds the rest.
        async with aclosing(self._engine.stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    @overload
    async def extract(
        self,
        pictures: Pictures,
        wanted: type[T],
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Extracted[T]: ...
    @overload
    async def extract(
        self,
        pictures: Pictures,
        wanted: Mapping[str, Any],
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Extracted[Any]: ...
    async def extract(  # noqa: PLR0913 - as in `Llava`
        self,
        pictures: Pictures,
        wanted: Any,
        prompt: str = DESCRIBE,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> Extracted[Any]:
        """See `Llava.extract`."""
        form = form_of(wanted)
        turn = await async_user_turn(
            self._engine, self._reporter, pictures, form.asked(prompt), decode=decode
        )
        options = {**OPTIONS, **(options or {})}
        request = turns.request_of([], turn, system, options, trusted=trusted)
        return await form.extract_async(request, self._engine.answer)

    def chat(
        self,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        trusted: bool = False,
        decode: Decode = "exact",
    ) -> AsyncChat:
        """See `Llava.chat`."""
        return AsyncChat(
            self._engine,
            self._reporter,
            system=system,
            options=options,
            trusted=trusted,
            decode=decode,
        )

    async def vision(self) -> Vision:
        """See `Llava.vision`."""
        return Vision(await self._engine.image_size())

    async def close(self) -> None:
        """See `Llava.close`."""
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _async_ollama(model: str, host: str | None, timeout: float | None) -> AsyncEngine:
    from llava_ollama.engine.ollama import AsyncOllamaEngine

    settings = Settings.read(host=host)
    return AsyncOllamaEngine(model, settings.host, timeout=patience(timeout, settings))
