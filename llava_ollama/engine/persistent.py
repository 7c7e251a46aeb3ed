"""Engines that ask again where that is harmless, and soon of use.

A question changes nothing, so it may be asked twice as long as no word of an answer was passed on.
It is, where the daemon is busy or loads its model, and where one that was reached before refuses
the connection: it is being restarted. A runner that crashed would crash again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, TypeVar

from llava_ollama.errors import DaemonBusy, DaemonError, DaemonUnreachable, ModelLoading
from llava_ollama.progress import SILENT, Reporter

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from llava_ollama.engine.interface import Answer, AsyncEngine, Chunk, Engine, Request

T = TypeVar("T")

RETRY_FOR = 30.0
"""Seconds after which a question is not asked again. Ollama gives up loading after 300 of its own,
so that this is not repeated."""
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 4.0


class _Patience:
    """When to ask again, for both kinds of engine."""

    def __init__(self, seconds: float, reporter: Reporter) -> None:
        self._seconds, self._reporter = seconds, reporter
        self._reached = False

    def _may_ask_again(self, exc: BaseException) -> bool:
        import httpx

        if isinstance(exc, DaemonUnreachable):
            refused = isinstance(exc.__cause__, ConnectionError | httpx.ConnectError)
            return refused and self._reached
        return isinstance(exc, DaemonBusy | ModelLoading)

    def _policy(self, begun: float) -> dict[str, Any]:
        """Return how tenacity is to go on; it is imported only after something has failed."""
        import tenacity

        left = self._seconds - (time.monotonic() - begun)
        return {
            "retry": tenacity.retry_if_exception(self._may_ask_again),
            # With a random part, or all that found a queue full would meet there again.
            "wait": tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)
            + tenacity.wait_random(0, _FIRST_WAIT),
            "stop": tenacity.stop_before_delay(max(left, 0.0)),
            "before_sleep": self._tell,
            "reraise": True,
        }

    def _tell(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            self._reporter.note(f"{state.outcome.exception()}; asking again")


class PersistentEngine(_Patience):
    """An engine that asks `engine` again, for up to `seconds`."""

    def __init__(self, engine: Engine, seconds: float, reporter: Reporter = SILENT) -> None:
        super().__init__(seconds, reporter)
        self.name = engine.name
        self._engine = engine

    def image_size(self) -> int:
        """See `Engine.image_size`."""
        return self._persist(self._engine.image_size)

    def answer(self, request: Request) -> Answer:
        """Return the whole answer."""
        return self._persist(lambda: self._engine.answer(request))

    def stream(self, request: Request) -> Generator[Chunk]:
        """Yield the answer as it is made; what fails after its first chunk has failed."""

        def begin() -> tuple[Chunk, Generator[Chunk]]:
            chunks = self._engine.stream(request)
            return next(chunks), chunks

        first, rest = self._persist(begin)
        with closing(rest):
            yield first
            yield from rest

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()

    def _persist(self, ask: Callable[[], T]) -> T:
        begun = time.monotonic()
        try:
            answer = ask()
        except DaemonError as exc:
            if not self._may_ask_again(exc):
                raise
            answer = self._again(ask, exc, begun)
        self._reached = True
        return answer

    def _again(self, ask: Callable[[], T], exc: DaemonError, begun: float) -> T:
        from tenacity import Retrying

        failed = [exc]  # it counts as the first attempt

        def once() -> T:
            if failed:
                raise failed.pop()
            return ask()

        return Retrying(**self._policy(begun))(once)


class AsyncPersistentEngine(_Patience):
    """The same as `PersistentEngine`, for asyncio."""

    def __init__(self, engine: AsyncEngine, seconds: float, reporter: Reporter = SILENT) -> None:
        super().__init__(seconds, reporter)
        self.name = engine.name
        self._engine = engine

    async def image_size(self) -> int:
        """See `Engine.image_size`."""
        return await self._persist(self._engine.image_size)

    async def answer(self, request: Request) -> Answer:
        """See `PersistentEngine.answer`."""
        return await self._persist(lambda: self._engine.answer(request))

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `PersistentEngine.stream`."""

        async def begin() -> tuple[Chunk, AsyncGenerator[Chunk]]:
            chunks = self._engine.stream(request)
            return await anext(chunks), chunks

        first, rest = await self._persist(begin)
        async with aclosing(rest):
            yield first
            async for chunk in rest:
                yield chunk

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._engine.close()

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        begun = time.monotonic()
        try:
            answer = await ask()
        except DaemonError as exc:
            if not self._may_ask_again(exc):
                raise
            answer = await self._again(ask, exc, begun)
        self._reached = True
        return answer

    async def _again(self, ask: Callable[[], Awaitable[T]], exc: DaemonError, begun: float) -> T:
        from tenacity import AsyncRetrying

        failed = [exc]

        async def once() -> T:
            if failed:
                raise failed.pop()
            return await ask()

        return await AsyncRetrying(**self._policy(begun))(once)
