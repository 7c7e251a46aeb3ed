"""The engine that most people have: a model installed in an Ollama daemon.

Requests go through ollama-python. Sync and async are thin shells over the same pure functions:
`_arguments` builds a request, `_answer` reads a reply, `_Fold` gathers a streamed one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from llava_ollama import presence, prompts
from llava_ollama.daemon import Daemon, Shown
from llava_ollama.daemon_errors import (
    CONNECT_TIMEOUT,
    connecting,
    door,
    failure,
    not_ollama,
    unreachable,
)
from llava_ollama.engine.interface import Answer, Chunk, Finish, Request, Times, Usage
from llava_ollama.errors import DaemonError, IncompleteAnswer, UsageProblem
from llava_ollama.images import CLIP_L_SIDE
from llava_ollama.modelfile import chat_template
from llava_ollama.package import parameters
from llava_ollama.settings import DEFAULT_TIMEOUT, is_loopback

if TYPE_CHECKING:
    from types import ModuleType

    import ollama

_NANO = 1e-9


class _Installed:
    """The installed model that both engines talk to, and what the daemon says of it."""

    name = "ollama"

    def __init__(self, model: str, host: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.model = model
        self.host = host
        self._timeout = timeout
        self._closed = False

    @cached_property
    def _shown(self) -> Shown:
        """What the daemon says of the model; asked once, before the first question."""
        client = Daemon(self.host, timeout=self._timeout)
        try:
            shown = client.show(self.model)
            # Llama-3's control tokens are known; any other vocabulary takes some MB to ask for.
            foreign = shown.template != chat_template()
            return client.show(self.model, vocabulary=True) if foreign else shown
        finally:
            client.close()

    @cached_property
    def _digest(self) -> str | None:
        package = self._shown.package()
        return package.digest() if package else None

    def _image_size(self) -> int:
        self._check_open()
        if not self._shown.has_vision:
            raise UsageProblem(
                f"`{self.model}` does not see pictures",
                hint="`llava-ollama list` shows the vision models that are installed",
            )
        return self._shown.image_size or CLIP_L_SIDE

    def _arguments(self, request: Request) -> dict[str, Any]:
        """Return the arguments of `ollama.Client.chat` for a request."""
        self._check_open()
        messages = [
            {
                "role": message.role,
                "content": prompts.place_ollama(message.text, len(message.pictures)),
                **({"images": [p.data for p in message.pictures]} if message.pictures else {}),
            }
            for message in request.spoken(self._shown.control)
        ]
        options = parameters(request.options)
        return {
            "model": self.model,
            "messages": messages,
            "options": options or None,
            "format": request.schema,
        }

    def _answer(self, text: str, last: ollama.ChatResponse) -> Answer:
        """Return the answer that ends with the reply `last`, whose times are nanoseconds.

        Raises:
            IncompleteAnswer: it is not the last reply of an answer.
        """
        if not last.done:
            raise incomplete(self.host, text)
        finish: Finish = "length" if last.done_reason == "length" else "stop"
        return Answer(
            text=text,
            finish=finish,
            usage=Usage(last.prompt_eval_count or 0, last.eval_count or 0),
            times=Times(
                total=(last.total_duration or 0) * _NANO,
                load=(last.load_duration or 0) * _NANO,
                prompt=(last.prompt_eval_duration or 0) * _NANO,
                completion=(last.eval_duration or 0) * _NANO,
            ),
            model_digest=self._digest,
            engine=self.name,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise UsageProblem("this engine is closed", hint="Make a new one")


class _Fold:
    """Makes chunks of the replies of a streamed answer, and remembers the text so far."""

    def __init__(self, engine: _Installed) -> None:
        self.text = ""
        self._engine = engine
        self._begun = self._complete = False

    def feed(self, reply: ollama.ChatResponse) -> Chunk:
        """Return the chunk that `reply` carries."""
        piece = reply.message.content or ""
        self.text += piece
        self._begun = True
        if not reply.done:
            return Chunk(piece)
        self._complete = True
        return Chunk(piece, self._engine._answer(self.text, reply))  # noqa: SLF001 - its own half

    @contextmanager
    def door(self) -> Iterator[None]:
        """Turn errors into ours; what breaks off after its first word is an incomplete answer."""
        import httpx

        broken = (httpx.RemoteProtocolError, httpx.NetworkError, json.JSONDecodeError)
        try:
            with _door(self._engine.host, self._engine.model):
                yield
        except IncompleteAnswer as exc:
            exc.text = self.text
            raise
        except DaemonError as exc:
            if self._begun and isinstance(exc.__cause__, broken):
                raise incomplete(self._engine.host, self.text) from exc.__cause__
            raise
        if not self._complete:
            raise incomplete(self._engine.host, self.text)


class OllamaEngine(_Installed):
    """Answers through a model installed in a daemon; may be shared between threads."""

    @cached_property
    def _client(self) -> ollama.Client:
        library = _library()
        with connecting(self.host):
            client: ollama.Client = library.Client(**_options(self.host, self._timeout))
        return client

    def image_size(self) -> int:
        """Return the side in pixels of the square that the model sees."""
        return self._image_size()

    def answer(self, request: Request) -> Answer:
        """Return the whole answer."""
        arguments = self._arguments(request)
        _ = self._digest
        with _door(self.host, self.model):
            reply = self._client.chat(**arguments)
        return self._answer(reply.message.content or "", reply)

    def stream(self, request: Request) -> Generator[Chunk]:
        """Yield the answer as it is made; closing the iterator stops the daemon's work."""
        arguments = self._arguments(request)
        _ = self._digest
        fold = _Fold(self)
        with fold.door():
            replies = self._client.chat(**arguments, stream=True)
            with closing(cast("Generator[ollama.ChatResponse]", replies)):
                for reply in replies:
                    yield fold.feed(reply)

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if "_client" in self.__dict__:
            self._client.close()  # type: ignore[no-untyped-call] # ollama-python has no types here


class AsyncOllamaEngine(_Installed):
    """The same as `OllamaEngine`, for asyncio; belongs to one event loop."""

    @cached_property
    def _client(self) -> ollama.AsyncClient:
        library = _library()
        with connecting(self.host):
            client: ollama.AsyncClient = library.AsyncClient(**_options(self.host, self._timeout))
        return client

    async def image_size(self) -> int:
        """See `OllamaEngine.image_size`."""
        await self._look()
        return self._image_size()

    async def answer(self, request: Request) -> Answer:
        """See `OllamaEngine.answer`."""
        await self._look()
        arguments = self._arguments(request)
        with _door(self.host, self.model):
            reply = await self._client.chat(**arguments)
        return self._answer(reply.message.content or "", reply)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """See `OllamaEngine.stream`."""
        await self._look()
        arguments = self._arguments(request)
        fold = _Fold(self)
        with fold.door():
            replies = await self._client.chat(**arguments, stream=True)
            async with aclosing(cast("AsyncGenerator[ollama.ChatResponse]", replies)):
                async for reply in replies:
                    yield fold.feed(reply)

    async def close(self) -> None:
        """See `OllamaEngine.close`."""
        self._closed = True
        if "_client" in self.__dict__:
            await self._client.close()  # type: ignore[no-untyped-call] # likewise

    async def _look(self) -> None:
        """Import ollama-python and ask about the model, once and beside the event loop."""
        self._check_open()
        if "_digest" not in self.__dict__:
            await asyncio.to_thread(lambda: (_library(), self._digest))


def incomplete(host: str, text: str) -> IncompleteAnswer:
    """Return the error for an answer that ended without its last part."""
    return IncompleteAnswer(
        f"the answer from {host} ended in the middle, after {len(text)} characters",
        hint="Ask again; a daemon also cuts off a model that repeats itself",
        text=text,
    )


@contextmanager
def _door(host: str, model: str) -> Iterator[None]:
    """Turn what ollama-python raises into our errors; the rest is the daemon's door."""
    import pydantic

    library = _library()
    try:
        with door(host):
            yield
    except library.ResponseError as exc:
        said = exc.error if isinstance(exc.error, str) else json.dumps(exc.error)
        # An error in the middle of a stream has no status; ollama-python calls it -1.
        error = failure(max(exc.status_code, 0) or 500, said, host, model)
        raise presence.denied(error, host, model) from exc
    except ConnectionError as exc:
        # The non-streaming calls of ollama-python wrap httpx.ConnectError in the builtin one.
        raise unreachable(host, exc) from exc
    # AttributeError: ollama-python looks for `error` in a reply that is a list, say.
    except (json.JSONDecodeError, RecursionError, AttributeError, pydantic.ValidationError) as exc:
        raise not_ollama(host) from exc


def _options(host: str, timeout: float) -> dict[str, Any]:
    import httpx

    return {
        "host": host,
        "timeout": httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
        "trust_env": not is_loopback(host),
        # ollama-python would send the picture on to wherever an answer points.
        "follow_redirects": False,
    }


_IMPORT = threading.Lock()


def _library() -> ModuleType:
    """Import ollama-python, whatever the environment says: it builds a client at import.

    A port that is none in OLLAMA_HOST, or ALL_PROXY=socks5://…, raise there. Both have been read,
    and judged, by `settings.py` before, so they are hidden for that moment.
    """
    if (ready := sys.modules.get("ollama")) and hasattr(ready, "AsyncClient"):
        return ready
    with _IMPORT:
        hidden = {
            name: os.environ.pop(name)
            for name in list(os.environ)
            if name in {"OLLAMA_HOST", "SSL_CERT_FILE", "SSL_CERT_DIR"}
            or name.upper().endswith("_PROXY")
        }
        try:
            import ollama
        finally:
            os.environ.update(hidden)
    return ollama
