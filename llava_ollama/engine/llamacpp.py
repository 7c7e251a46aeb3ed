"""The engine for llama-server's HTTP API, whether a program of its own or inside this process.

Two thin shells, plain and async, over the pure functions of `engine/completion.py`.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from llava_ollama.engine import completion
from llava_ollama.engine.completion import Call, Facts, Reply
from llava_ollama.engine.connection import Line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    import httpx

    from llava_ollama.engine.interface import Answer, Chunk, Request
    from llava_ollama.errors import LlavaOllamaError


class LlamaCppEngine(Line):
    """Answers through the llama-server at `url`; may be shared between threads."""

    def __init__(self, url: str, **keywords: Any) -> None:
        super().__init__(url, **keywords)
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def image_size(self) -> int:
        """Return the side in pixels of the square that the model sees.

        Raises:
            UsageProblem: the model has no vision.
        """
        self._check_open()
        self._look()
        return self._side

    def answer(self, request: Request) -> Answer:
        """Return the whole answer."""
        # Streamed as well, so that the timeout is about silence, however long the answer.
        return next(chunk.answer for chunk in self.stream(request) if chunk.answer)

    def stream(self, request: Request) -> Generator[Chunk, None, None]:
        """Yield the answer as it is made; closing the iterator stops the work."""
        fold = self._fold()
        with contextlib.closing(self._begin(request)) as response, self._door(fold.cut):
            for line in response.iter_lines():
                if chunk := fold.feed(line):
                    yield chunk
        fold.end()

    def close(self) -> None:
        """Release the connections, and the model where it lives in this process."""
        self._release()
        if self._client is not None:
            self._client.close()

    def _http(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None:
                self._client = httpx.Client(**self._settings())
            return self._client

    def _send(self, call: Call, otherwise: Callable[[str], LlavaOllamaError]) -> httpx.Response:
        """Return the response: open where it is an answer, else read."""
        client, trace = self._http(), {"trace": self._sockets.trace}
        prepared = client.build_request(call.method, call.path, json=call.body, extensions=trace)
        with self._door(otherwise):
            response = client.send(prepared, stream=True)
            if not completion.is_answer(call, response.status_code):
                response.read()
        return response

    def _look(self, *, again: bool = False) -> Facts:
        if self._facts is None or again:
            steps = completion.look(self._server)
            call = next(steps)
            while True:
                reply = _reply(self._send(call, self._stranger))
                try:
                    call = steps.send(reply)
                except StopIteration as done:
                    facts: Facts = done.value
                    self._facts = facts
                    return facts
        return self._facts

    def _begin(self, request: Request) -> httpx.Response:
        reply = Reply(0, "")
        for again in (False, True):
            call = completion.call(request, self._look(again=again), self._defaults)
            response = self._send(call, self._crashed)
            if completion.is_answer(call, response.status_code):
                return response
            reply = _reply(response)
            if not completion.may_know_another_marker(reply):
                break
        raise completion.refusal(self._server, reply)


class AsyncLlamaCppEngine(Line):
    """The same as `LlamaCppEngine`, for asyncio; belongs to one event loop."""

    def __init__(self, url: str, **keywords: Any) -> None:
        super().__init__(url, **keywords)
        self._client: httpx.AsyncClient | None = None

    async def image_size(self) -> int:
        """See `LlamaCppEngine.image_size`."""
        self._check_open()
        await self._look()
        return self._side

    async def answer(self, request: Request) -> Answer:
        """See `LlamaCppEngine.answer`."""
        answers = [chunk.answer async for chunk in self.stream(request) if chunk.answer]
        return answers[-1]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """See `LlamaCppEngine.stream`."""
        fold = self._fold()
        async with contextlib.aclosing(await self._begin(request)) as response:
            with self._door(fold.cut):
                async for line in response.aiter_lines():
                    if chunk := fold.feed(line):
                        yield chunk
        fold.end()

    async def look_again(self) -> None:
        """See whether the server is there; it may have been started anew."""
        self._check_open()
        await self._look(again=True)

    async def close(self) -> None:
        """See `LlamaCppEngine.close`."""
        self._release()
        if self._client is not None:
            await self._client.aclose()

    def _http(self) -> httpx.AsyncClient:
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(**self._settings())
        return self._client

    async def _send(
        self, call: Call, otherwise: Callable[[str], LlavaOllamaError]
    ) -> httpx.Response:
        client, trace = self._http(), {"trace": self._sockets.trace_async}
        prepared = client.build_request(call.method, call.path, json=call.body, extensions=trace)
        with self._door(otherwise):
            response = await client.send(prepared, stream=True)
            if not completion.is_answer(call, response.status_code):
                await response.aread()
        return response

    async def _look(self, *, again: bool = False) -> Facts:
        if self._facts is None or again:
            steps = completion.look(self._server)
            call = next(steps)
            while True:
                reply = _reply(await self._send(call, self._stranger))
                try:
                    call = steps.send(reply)
                except StopIteration as done:
                    facts: Facts = done.value
                    self._facts = facts
                    return facts
        return self._facts

    async def _begin(self, request: Request) -> httpx.Response:
        reply = Reply(0, "")
        for again in (False, True):
            call = completion.call(request, await self._look(again=again), self._defaults)
            response = await self._send(call, self._crashed)
            if completion.is_answer(call, response.status_code):
                return response
            reply = _reply(response)
            if not completion.may_know_another_marker(reply):
                break
        raise completion.refusal(self._server, reply)


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.text)
