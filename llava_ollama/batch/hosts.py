"""Who answers in a run: an engine with its own pace, and a breaker for when it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from llava_ollama.batch.breaker import Breaker
from llava_ollama.batch.events import HostLevel, HostState
from llava_ollama.batch.pace import Level
from llava_ollama.engine.interface import AsyncEngine
from llava_ollama.errors import UsageProblem
from llava_ollama.settings import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from llava_ollama.in_process import Which
    from llava_ollama.progress import Reporter

T = TypeVar("T")

_LOOK = 10.0
"""Seconds for a host to say that it is there."""


class Site(Protocol):
    """Where an engine's model is, as far as that can be asked without asking the model."""

    name: str
    engine: AsyncEngine

    async def look(self) -> None:
        """See whether it is there; raises what is in the way."""
        ...

    async def digest(self) -> str | None:
        """Return the model's digest as it is now (`package.Package.digest`), or None: unknown."""
        ...

    def remedy(self, digest: str | None) -> str:
        """Return the command that brings the model of this digest to it."""
        ...

    async def close(self) -> None:
        """Close the engine, and what else is open."""
        ...


@dataclass
class Host:
    """A site, and how it does."""

    site: Site
    pace: Level
    breaker: Breaker = field(default_factory=Breaker)
    met: bool = False
    """Whether it holds the run's model, and has told two pictures apart."""
    out: bool = False
    """Left out for the rest of the run."""
    lone: bool = False
    """Whether what it is asked must stay alone there."""
    asked: int = 0
    answers: int = 0

    @property
    def name(self) -> str:
        """What the journal and messages call it."""
        return self.site.name

    @property
    def level(self) -> int:
        """Requests that it may have at once."""
        return max(1, self.pace.level) if self.breaker.is_closed else 1

    @property
    def free(self) -> bool:
        """Whether it may be asked one thing more."""
        return self.met and not (self.is_away or self.lone) and self.asked < self.level

    @property
    def is_away(self) -> bool:
        """Whether nothing can be asked of it for now."""
        return self.out or self.breaker.is_open

    @property
    def state(self) -> HostState:
        """How it is, in one word."""
        if self.out:
            return "left out"
        if self.breaker.is_open:
            return "down"
        if not self.met:
            return "waiting"
        return "up" if self.breaker.is_closed else "trying"

    def told(self) -> HostLevel:
        """Return how it does, for whoever watches."""
        rate = self.pace.rate
        return HostLevel(self.name, self.state, self.level, self.asked, self.answers, rate)


class OllamaSite:
    """A model installed in an Ollama daemon."""

    def __init__(self, model: str, host: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """`host` is a base URL (`settings.parse_host`), `timeout` the seconds for an answer."""
        from llava_ollama.daemon import Daemon
        from llava_ollama.engine.ollama import AsyncOllamaEngine

        self.name, self._model = host, model
        self.engine: AsyncEngine = AsyncOllamaEngine(model, host, timeout=timeout)
        self._asking: set[asyncio.Future[Any]] = set()
        self._daemon = Daemon(host, timeout=min(timeout, _LOOK))

    async def look(self) -> None:
        """See `Site.look`: `GET /api/version`."""
        await self._told(self._daemon.version)

    async def digest(self) -> str | None:
        """See `Site.digest`."""
        shown = await self._told(lambda: self._daemon.show(self._model))
        package = shown.package()
        return package.digest() if package else None

    def remedy(self, digest: str | None) -> str:  # noqa: ARG002 - the name is the same everywhere
        """See `Site.remedy`."""
        return f"llava-ollama install … --host {self.name} --name {self._model} --force"

    async def _told(self, ask: Callable[[], T]) -> T:
        # A thread goes on when its task is cancelled, and must not meet a closed connection.
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """See `Site.close`."""
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._daemon.close()
        await self.engine.close()


class LlamaCppSite:
    """A llama-server, or llama.cpp in this process."""

    def __init__(self, name: str, engine: AsyncEngine, look: Callable[[], Awaitable[None]]) -> None:
        self.name, self.engine, self._look = name, engine, look

    async def look(self) -> None:
        """See `Site.look`."""
        await self._look()

    async def digest(self) -> str | None:
        """See `Site.digest`; the process that serves it cannot change its model."""
        return getattr(self.engine, "model_digest", None)

    def remedy(self, digest: str | None) -> str:  # noqa: ARG002 - it cannot tell which model
        """See `Site.remedy`."""
        return f"leave `{self.name}` out"

    async def close(self) -> None:
        """See `Site.close`."""
        await self.engine.close()


def server(url: str, *, api_key: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> Site:
    """Return the site of a running llama-server."""
    from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine

    engine = AsyncLlamaCppEngine(url, api_key=api_key, timeout=timeout)
    return LlamaCppSite(engine.url, engine, engine.look_again)


def embedded(which: Which, *, threads: int | None = None, reporter: Reporter) -> Site:
    """Load a model into this process and return its site."""
    from llava_ollama import in_process

    engine = in_process.start_async(which, threads=threads, reporter=reporter)
    return LlamaCppSite("embedded", engine, engine.look_again)


def another(host: Host, first: Host | None, digest: str | None) -> UsageProblem:
    """Return the error for a host whose model is not that of the run."""
    whose = f"than `{first.name}`" if first else "than this run asked so far"
    return UsageProblem(
        f"`{host.name}` holds another model {whose}, so their answers would not be of one kind",
        hint=f"Install the same one there: {host.site.remedy(digest)}",
    )
