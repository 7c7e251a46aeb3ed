"""A proxy on the loopback interface in front of a real daemon, which breaks one request or all.

`python -m tests.proxy` installs a model in a process of its own, which can be killed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from llava_ollama import catalog
from llava_ollama.daemon import Daemon
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.install import Installer, from_catalog
from llava_ollama.records import Records
from llava_ollama.weights import Weights
from tests.installing import uploading

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Fault:
    """What happens to a request; only one of these."""

    status: int | None = None
    body: bytes = b""
    garbage: bool = False
    """Bytes that are not HTTP."""
    refuse: bool = False
    """Hang up before anything is passed on."""
    cut: int | None = None
    """Pass the request on, and so many bytes of the answer's body back."""
    hold: bool = False
    """Wait for `Proxy.release`; the request gets lost."""
    withhold: bool = False
    """Pass the request on, and wait for `Proxy.release`; the answer gets lost."""
    only_from: bool = False
    """Once, or for this request and all that follow."""


@dataclass
class Proxy:
    """Passes requests on to the daemon at `target`; a context manager.

    `faults` are for the requests of these numbers, counted from 0 over `requests`.
    """

    target: str
    faults: dict[int, Fault] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of each, in the order of their arrival."""
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released for each request that waits."""
    release: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    """Bytes of blobs that were uploaded."""
    watch: Callable[[str, bytes], object] = lambda _request, _body: None
    """Told of each request and its body before anything happens to it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy: int = 0

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(self, faults: dict[int, Fault] | None = None) -> None:
        """Begin to count anew."""
        self.release.set()
        with self._lock:
            self.faults, self.requests, self.sent = faults or {}, [], 0
            self.release, self.held = threading.Event(), threading.Semaphore(0)

    def take(self, request: str, size: int) -> Fault:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.sent += size if "/api/blobs/" in request else 0
            for start, fault in self.faults.items():
                if fault.only_from and number >= start:
                    return fault
            return self.faults.get(number, Fault())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, _request, _client_address) -> None:
        pass  # clients that hang up are what this is for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format, *args) -> None:  # noqa: A002 - the base class's name
        pass

    def _pass_on(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy.watch(f"{self.command} {self.path}", body)
        fault = proxy.take(f"{self.command} {self.path}", len(body))
        release = proxy.release
        if fault.hold:
            self.close_connection = True
            proxy.held.release()
            release.wait(60)  # and then hang up: the request is lost
        elif fault.refuse:
            self._hang_up()
        elif fault.garbage:
            self.close_connection = True
            self.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")
        elif fault.status is not None:
            self._answer(fault.status, fault.body)
        else:
            self._forward(body, fault, release)

    do_GET = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - the base class's names

    def _forward(self, body: bytes, fault: Fault, release: threading.Event) -> None:
        host = self.server.proxy.target.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as upstream:
            kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            upstream.request(self.command, self.path, body, kind)
            answer = upstream.getresponse()
            if fault.withhold:
                answer.read()
                self.close_connection = True
                self.server.proxy.held.release()
                release.wait(60)
                return
            self._pass_back(answer, fault)

    def _pass_back(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        if self.command == "HEAD":
            self.send_header("Content-Length", "0")
            return self.end_headers() if fault.cut is None else self._hang_up()
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = fault.cut
        while left != 0 and (block := answer.read1(_BLOCK)[:left]):
            left = None if left is None else left - len(block)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        if fault.cut is not None:
            return self._hang_up()
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def installer(host: str, folder: Path, *, timeout: float = 60.0) -> tuple[Installer, Daemon]:
    """Return an installer for the daemon at `host` whose records are in `folder`; it uploads."""
    daemon = Daemon(host, timeout=timeout, create_timeout=timeout)
    weights = Weights(downloads=folder / "downloads")
    return uploading(daemon, weights, Records(folder / "state")), daemon


def _install(job: dict[str, Any]) -> str:
    install, _ = installer(job["host"], Path(job["folder"]))
    wanted = from_catalog(catalog.load(), "tiny-llava", job["quant"], to=job["name"])
    try:
        result = install.apply(install.plan(wanted), force=True)
    except KeyboardInterrupt:
        return "interrupted"
    except LlavaOllamaError as exc:
        return type(exc).__name__
    return f"changed {result.changed}"


if __name__ == "__main__":
    sys.stdout.write(_install(json.loads(sys.argv[1])) + "\n")
