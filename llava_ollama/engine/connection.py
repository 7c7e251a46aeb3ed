"""What both llama.cpp engines share: the address, the open connections, and httpx's errors."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llava_ollama.engine import completion
from llava_ollama.engine.completion import Facts, Fold, Server
from llava_ollama.errors import (
    DaemonTimeout,
    DaemonUnreachable,
    LlavaOllamaError,
    RunnerCrashed,
    UsageProblem,
)
from llava_ollama.images import CLIP_L_SIDE
from llava_ollama.settings import DEFAULT_TIMEOUT, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Sockets:
    """The open connections, so that `cut` can end what other threads are waiting for.

    A llama.cpp server in this process must have no open request when it is destroyed: measured, it
    waits 30 s and keeps the interpreter's lock all the time; at exit the process dies of SIGSEGV.
    """

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note a new connection (https://www.python-httpx.org/advanced/extensions/#trace)."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            with self._lock:
                self._streams.add(info["return_value"])

    async def trace_async(self, event: str, info: Mapping[str, Any]) -> None:
        """Note a new connection."""
        self.trace(event, info)

    def cut(self) -> None:
        """Shut all connections down; whoever reads from one finds its end at once."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            # Closing would not wake a thread that waits in `recv`; shutting down does.
            with contextlib.suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class Line:
    """What both shells share: the address, what is known of the server, and httpx's errors."""

    name = completion.ENGINE

    def __init__(  # noqa: PLR0913 - one set of keywords for both shells
        self,
        url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        api_key: str | None = None,
        # A llama-server does not tell its projector's own, and resizes whatever it gets.
        image_size: int = CLIP_L_SIDE,
        model_digest: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        called: str | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Prepare to talk to `url`; nothing is sent yet.

        `timeout` is in seconds without a word from the server; `called` names it in messages;
        `defaults` are options that hold where a request has no such option.
        `release` is called once, after the connections are cut: at `close`, when the engine is
        forgotten, or at exit.

        Raises:
            UsageProblem: `url` is not an address.
        """
        self.url = address(url)
        self._server = Server(self.url, called or f"the llama-server at `{self.url}`")
        self._timeout, self.api_key = timeout, api_key
        self._side, self._digest = image_size, model_digest
        self._sockets = Sockets()
        self._release = weakref.finalize(self, _end, self._sockets, release)
        self._defaults = dict(defaults or {})
        self._facts: Facts | None = None

    @property
    def model_digest(self) -> str | None:
        """The digest of the model that answers, where it is known."""
        return self._digest

    def _settings(self) -> dict[str, Any]:
        import httpx

        return {
            "base_url": self.url,
            "timeout": httpx.Timeout(self._timeout, connect=min(10.0, self._timeout)),
            "headers": {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            # A proxy from the environment cannot reach this machine's own loopback address.
            "trust_env": not is_loopback(self.url),
            # A reused connection broke 1 in 400 requests: the server was just hanging up. A new one
            # costs 0.1 ms on this machine.
            "limits": httpx.Limits(max_keepalive_connections=0),
        }

    def _check_open(self) -> None:
        if not self._release.alive:
            raise UsageProblem("this engine is closed", hint="Make a new one")

    def _fold(self) -> Fold:
        self._check_open()
        return Fold(self._server, self._digest)

    @contextlib.contextmanager
    def _door(self, otherwise: Callable[[str], LlavaOllamaError]) -> Iterator[None]:
        """Translate what httpx raises; `otherwise` makes the error of a broken connection."""
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as exc:
            raise DaemonUnreachable(
                f"nothing answers at `{self.url}`: {_reason(exc)}",
                hint="Start it: llama-server --model FILE --mmproj FILE",
            ) from exc
        except httpx.TimeoutException as exc:
            raise DaemonTimeout(
                f"{self._server.called} did not answer within {self._timeout:g} s",
                hint="Give it more time (`timeout`), or ask for a shorter answer (`num_predict`)",
            ) from exc
        except httpx.HTTPError as exc:
            closed = "the engine was closed"
            raise otherwise(_reason(exc) if self._release.alive else closed) from exc

    def _crashed(self, why: str) -> RunnerCrashed:
        return RunnerCrashed(
            f"{self._server.called} broke the connection off without an answer: {why}",
            hint="See what it printed last; it may have run out of memory",
        )

    def _stranger(self, _why: str) -> DaemonUnreachable:
        return completion.stranger(self._server)


def _end(sockets: Sockets, release: Callable[[], None] | None) -> None:
    sockets.cut()
    if release is not None:
        release()


def _reason(exc: Exception) -> str:
    """Return what httpx says in one line; it says nothing for a timeout."""
    return str(exc).strip().rstrip(".").splitlines()[0] if str(exc).strip() else type(exc).__name__


def address(url: str) -> str:
    """Return `url` with its scheme and port; without either it is llama-server's 8080.

    Raises:
        UsageProblem: it is not the address of an HTTP server.
    """
    full = url.strip() if "://" in url else f"http://{url.strip()}"
    default = {"http": 80, "https": 443} if "://" in url else {"http": 8080}
    try:
        parts = urlsplit(full)
        host = parts.hostname or ""
        port = default[parts.scheme] if parts.port is None else parts.port
    except (ValueError, KeyError):  # a port that is no number, half an IPv6 address; ftp
        host, port = "", 0
        parts = urlsplit("")
    if port == 0 or not re.fullmatch(r"[\w.:%-]+", host):
        raise UsageProblem(
            f"`{url}` is not the address of a llama-server",
            hint="It looks like `http://127.0.0.1:8080`",
        )
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"
