"""The engine that most people have: a model installed in an Ollama daemon.

Requests go through ollama-python. Sync and async are thin shells over the same pure functions:
`_arguments` builds a request, `_answer` reads a reply.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llava_ollama import daemon as admin
from llava_ollama import prompts
from llava_ollama.engine.interface import Answer, Chunk, Finish, Request, Times, Usage
from llava_ollama.errors import IncompleteAnswer, UsageProblem
from llava_ollama.package import parameters
from llava_ollama.settings import DEFAULT_TIMEOUT, is_loopback

if TYPE_CHECKING:
    import ollama

CLIP_L_SIDE = 336
"""CLIP-ViT-L/14-336's picture, for daemons that do not say what their projector takes."""
_NANO = 1e-9


class _Installed:
    """The installed model that both engines talk to, and what the daemon says of it."""

    name = "ollama"

    def __init__(self, model: str, host: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.model = model
        self.host = host
        self._timeout = timeout

    @cached_property
    def _shown(self) -> admin.Shown:
        client = admin.Daemon(self.host, timeout=self._timeout)
        try:
            return client.show(self.model)
        finally:
            client.close()

    @cached_property
    def _digest(self) -> str | None:
        package = self._shown.package()
        return package.digest() if package else None

    def _image_size(self) -> int:
        if not self._shown.has_vision:
            raise UsageProblem(
                f"`{self.model}` does not see pictures",
                hint="`llava-ollama list` shows the vision models that are installed",
            )
        return self._shown.image_size or CLIP_L_SIDE

    def _arguments(self, request: Request) -> dict[str, Any]:
        """Return the arguments of `ollama.Client.chat` for a request."""
        messages = [
            {
                "role": message.role,
                "content": prompts.place_ollama(message.text, len(message.pictures)),
                **({"images": [p.data for p in message.pictures]} if message.pictures else {}),
            }
            for message in request.messages
        ]
        options = parameters(request.options)
        return {"model": self.model, "messages": messages, "options": options or None}

    def _answer(self, text: str, last: Mapping[str, Any]) -> Answer:
        """Return the answer that ends with the reply `last`, whose times are nanoseconds.

        Raises:
            IncompleteAnswer: it is not the last reply of an answer.
        """
        if not last.get("done"):
            raise incomplete(self.host, text)
        finish: Finish = "length" if last.get("done_reason") == "length" else "stop"
        return Answer(
            text=text,
            finish=finish,
            usage=Usage(last.get("prompt_eval_count") or 0, last.get("eval_count") or 0),
            times=Times(
                total=(last.get("total_duration") or 0) * _NANO,
                load=(last.get("load_duration") or 0) * _NANO,
                prompt=(last.get("prompt_eval_duration") or 0) * _NANO,
                completion=(last.get("eval_duration") or 0) * _NANO,
            ),
            model_digest=self._digest,
            engine=self.name,
        )


class OllamaEngine(_Installed):
    """Answers through a model installed in a daemon."""

    @cached_property
    def _client(self) -> ollama.Client:
        with _undisturbed():
            import ollama
        return ollama.Client(host=self.host, **_http_options(self.host, self._timeout))

    def image_size(self) -> int:
        """Return the side in pixels of the square that the model sees."""
        return self._image_size()

    def answer(self, request: Request) -> Answer:
        """Return the whole answer."""
        with _door(self.host, self.model):
            reply = self._client.chat(**self._arguments(request))
        return self._answer(reply.message.content or "", reply.model_dump())

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is made; closing the iterator stops the daemon's work."""
        text = ""
        with _door(self.host, self.model):
            for reply in self._client.chat(**self._arguments(request), stream=True):
                piece = reply.message.content or ""
                text += piece
                yield Chunk(piece, self._answer(text, reply.model_dump()) if reply.done else None)
                if reply.done:
                    return
        raise incomplete(self.host, text)

    def close(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            self._client.__exit__(None, None, None)


class AsyncOllamaEngine(_Installed):
    """The same, for asyncio."""

    @cached_property
    def _client(self) -> ollama.AsyncClient:
        with _undisturbed():
            import ollama
        return ollama.AsyncClient(host=self.host, **_http_options(self.host, self._timeout))

    async def image_size(self) -> int:
        """Return the side in pixels of the square that the model sees."""
        return await asyncio.to_thread(self._image_size)

    async def answer(self, request: Request) -> Answer:
        """Return the whole answer."""
        await asyncio.to_thread(lambda: self._digest)
        with _door(self.host, self.model):
            reply = await self._client.chat(**self._arguments(request))
        return self._answer(reply.message.content or "", reply.model_dump())

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer as it is made; closing the iterator stops the daemon's work."""
        await asyncio.to_thread(lambda: self._digest)
        text = ""
        with _door(self.host, self.model):
            async for reply in await self._client.chat(**self._arguments(request), stream=True):
                piece = reply.message.content or ""
                text += piece
                yield Chunk(piece, self._answer(text, reply.model_dump()) if reply.done else None)
                if reply.done:
                    return
        raise incomplete(self.host, text)

    async def close(self) -> None:
        """Close the connections."""
        if "_client" in self.__dict__:
            await self._client.__aexit__(None, None, None)


def incomplete(host: str, text: str) -> IncompleteAnswer:
    """Return the error for an answer that ended without its last part."""
    return IncompleteAnswer(
        f"the answer from {host} ended in the middle, after {len(text)} characters",
        hint="Ask again; a model that repeats itself is cut off by the daemon",
        text=text,
    )


@contextmanager
def _door(host: str, model: str) -> Iterator[None]:
    """Turn what ollama-python raises into our errors; the rest is the daemon's door."""
    import ollama

    try:
        with admin.door(host):
            yield
    except ollama.ResponseError as exc:
        raise admin.failure(max(exc.status_code, 0) or 500, exc.error, host, model) from exc
    except ConnectionError as exc:
        # The non-streaming calls of ollama-python wrap httpx.ConnectError in the builtin one.
        raise admin.unreachable(host) from exc


def _http_options(host: str, timeout: float) -> dict[str, Any]:
    import httpx

    return {
        "timeout": httpx.Timeout(timeout, connect=admin.CONNECT_TIMEOUT),
        "trust_env": not is_loopback(host),
    }


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hide the variables that make `import ollama` fail: it builds a client at import.

    A port that is none in OLLAMA_HOST, or ALL_PROXY=socks5://…, raise there. Both have been read,
    and judged, by `settings.py` before.
    """
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name == "OLLAMA_HOST" or name.upper().endswith("_PROXY")
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
