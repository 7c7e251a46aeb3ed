"""Everybody who answers, as the suites meet them: both daemons, llama.cpp here, llama-server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from llava_ollama import Answer, Chunk
from llava_ollama.engine.embedded import start_embedded, start_embedded_async
from llava_ollama.engine.interface import AsyncEngine, Engine, Request
from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine, LlamaCppEngine
from llava_ollama.engine.ollama import AsyncOllamaEngine, OllamaEngine
from tests.daemons import build
from tests.daemons.running import RunningDaemon, free_port
from tests.installing import MODEL, PROJECTOR, install

SEEN = 64
"""Prompt tokens: what the tiny projector makes of a picture."""


class Asked(Protocol):
    """An engine of either kind, as the suite meets it."""

    def image_size(self) -> int: ...
    def answer(self, request: Request) -> Answer: ...
    def chunks(self, request: Request) -> list[Chunk]: ...
    def close(self) -> None: ...


@dataclass
class Plain:
    engine: Engine

    def image_size(self) -> int:
        return self.engine.image_size()

    def answer(self, request: Request) -> Answer:
        return self.engine.answer(request)

    def chunks(self, request: Request) -> list[Chunk]:
        return list(self.engine.stream(request))

    def close(self) -> None:
        self.engine.close()


@dataclass
class Async:
    engine: AsyncEngine
    runner: asyncio.Runner

    def image_size(self) -> int:
        return self.runner.run(self.engine.image_size())

    def answer(self, request: Request) -> Answer:
        return self.runner.run(self.engine.answer(request))

    def chunks(self, request: Request) -> list[Chunk]:
        async def gather() -> list[Chunk]:
            return [chunk async for chunk in self.engine.stream(request)]

        return self.runner.run(gather())

    def close(self) -> None:
        self.runner.run(self.engine.close())


@dataclass(frozen=True)
class Place:
    """Where engines come from."""

    version: str
    plain: type[Engine] | Any
    other: type[AsyncEngine] | Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def stray(self) -> int:
        """The begin-of-text tokens that 0.24.0 puts before each picture, where none belongs."""
        return int(self.version == "0.24.0")

    @property
    def tokens(self) -> int:
        """The prompt tokens of one picture and "Describe this image"."""
        return 78 + self.stray

    def asked(self, kind: str, opened: ExitStack) -> Asked:
        if kind == "plain":
            engine: Asked = Plain(self.plain(*self.arguments, **self.keywords))
        else:
            runner = opened.enter_context(asyncio.Runner())
            engine = Async(self.other(*self.arguments, **self.keywords), runner)
        opened.callback(engine.close)
        return engine


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """Run the llama-server that Ollama's own cmake file builds, on its own."""
    found = sorted(build.cache_root().glob("llama-*/llama-server"))
    if not found:
        reason = "llama-server is not built: run `make daemons` (10 minutes, once)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    url = f"http://127.0.0.1:{free_port()}"
    pair = ["--model", str(MODEL), "--mmproj", str(PROJECTOR)]
    command = [str(found[-1]), *pair, "--threads", "1", "--offline"]
    ports = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--parallel", "1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen([*command, *ports, "--ctx-size", "4096"], stdout=log, stderr=log)
    try:
        wait_for(url, server)
        yield url
    finally:
        server.kill()
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("llama-server did not start")


PLACES = [
    pytest.param("0.24.0", marks=pytest.mark.ollama),
    pytest.param("0.34.4", marks=pytest.mark.ollama),
    pytest.param("llama.cpp", marks=pytest.mark.embedded),
    pytest.param("llama-server", marks=pytest.mark.ollama),
]


@contextmanager
def opened(
    version: str, folder: Path, start: Callable[[str, Path], RunningDaemon]
) -> Iterator[Place]:
    """Yield one of `PLACES` with the tiny model in it; `start` is for the daemons."""
    if version == "llama.cpp":
        kinds = start_embedded, start_embedded_async
        yield Place(version, *kinds, (MODEL, PROJECTOR), {"cache": folder})
    elif version == "llama-server":
        with llama_server(folder) as url:
            yield Place(version, LlamaCppEngine, AsyncLlamaCppEngine, (url,), {})
    else:
        daemon = start(version, folder)
        name = install(daemon.host, folder, "tiny")
        yield Place(version, OllamaEngine, AsyncOllamaEngine, (name, daemon.host), {})
        daemon.stop()
