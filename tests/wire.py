"""A wire on the loopback interface before any HTTP server, cut or bent at any byte.

It knows bytes only, so a daemon, the Hub and a registry meet the very same faults. `proxy.py`
counts an install's requests and holds them; here a request is told by its method and path.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

_BLOCK = 1 << 16
_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Message:
    """A request or an answer as it is on the wire; `head` ends with its empty line."""

    head: bytes
    body: bytes = b""

    @property
    def whole(self) -> bytes:
        return self.head + self.body

    @property
    def half(self) -> bytes:
        """The head and half of the body, or of a head that has no body."""
        return self.whole[: len(self.head) // 2 if not self.body else -len(self.body) // 2]

    def resized(self, more: float) -> bytes:
        """Return the message with so much of its body more or less, as its head says as well."""
        plain = self.plain
        change = int(len(plain) * more) or 9
        plain = plain[:change] if change < 0 else plain + b"x" * change
        head = re.sub(rb"(?i)\r\n(transfer-encoding|content-length): *[^\r]*", b"", self.head[:-4])
        return b"%s\r\nContent-Length: %d\r\n\r\n%s" % (head, len(plain), plain)

    @property
    def plain(self) -> bytes:
        """The body without its chunks."""
        if b"chunked" not in self.head.lower():
            return self.body
        rest, plain = self.body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            plain, rest = plain + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return plain


@dataclass(frozen=True)
class Fault:
    """What becomes of a request and of its answer; the default is nothing."""

    arrives: float | None = None
    """The part of the request's body that the server gets before the wire is cut."""
    instead: bytes | None = None
    """Said in place of an answer; the server gets no request."""
    answer: Callable[[Message], bytes] = lambda answer: answer.whole
    """What the client gets of the answer."""
    end: Literal["close", "reset", "stall"] = "close"


FINE = Fault()


@dataclass
class Wire:
    """Before the server at `target`; a context manager. Told what to break by `cut`."""

    target: str
    requests: list[str] = field(default_factory=list)
    met: int = 0
    """Requests that were broken."""
    _path: re.Pattern[str] = field(default_factory=lambda: re.compile("$^"))
    _fault: Fault = FINE
    _left: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        # An `accept` that waits is not ended by closing its socket.
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname()).close()
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self, path: str, fault: Fault, *, times: int = 1 << 30) -> None:
        """Break the next requests whose `METHOD path` begins like the expression `path`."""
        with self._lock:
            self._path, self._fault, self._left, self.met = re.compile(path), fault, times, 0
            self.requests = []

    def mend(self) -> None:
        """Pass everything on as it is, and let go of what was stalled."""
        self.cut("$^", FINE)
        self._over.set()
        self._over = threading.Event()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        over = self._over
        with client, contextlib.suppress(OSError):  # either end may hang up: that is the point
            client.settimeout(_SECONDS)
            data = b""
            while b"\r\n\r\n" not in data:
                if not (block := client.recv(_BLOCK)):
                    return
                data += block
            head, _, body = data.partition(b"\r\n\r\n")
            line = b" ".join(head.split(b" ", 2)[:2]).decode()
            fault = self._take(line)
            end = self._answer(client, Message(_once(head + b"\r\n\r\n"), body), fault)
            if end == "stall":
                over.wait(_SECONDS)
            if end == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _take(self, line: str) -> Fault:
        with self._lock:
            self.requests.append(line)
            if not self._left or not self._path.match(line):
                return FINE
            self._left -= 1
            self.met += 1
            return self._fault

    def _answer(self, client: socket.socket, request: Message, fault: Fault) -> str:
        """Do to one request what the fault says; return how its connection ends."""
        if fault.instead is not None:
            if fault.end == "close":  # closing with bytes unread would be a reset
                for _ in self._body(client, request):
                    pass
            client.sendall(fault.instead)
            return fault.end
        address = self.target.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), _SECONDS) as server:
            server.sendall(request.head)
            for block in self._body(client, request, fault.arrives):
                # A server may answer before it has read all, and hang up: its answer counts.
                with contextlib.suppress(ConnectionError):
                    server.sendall(block)
            if fault.arrives is not None:
                return fault.end
            if fault is FINE:
                self._pour(server, client)
                return "close"
            answer = b"".join(iter(lambda: server.recv(_BLOCK), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        client.sendall(fault.answer(Message(_once(head + b"\r\n\r\n"), body)))
        return fault.end

    def _body(
        self, client: socket.socket, request: Message, part: float | None = None
    ) -> Iterator[bytes]:
        """Yield the request's body as it comes, the first `part` of it."""
        length = _LENGTH.search(request.head)
        size = int(length[1]) if length else 0
        left = size if part is None else min(int(size * part), size - 1)
        block = request.body[:left]
        while left > 0:
            yield block
            left -= len(block)
            block = client.recv(min(_BLOCK, left)) if left else b""
            if left and not block:
                return

    def _pour(self, server: socket.socket, client: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (block := server.recv(_BLOCK)):
                break
            data += block
        head, _, body = data.partition(b"\r\n\r\n")
        client.sendall(_once(head + b"\r\n\r\n") + body)
        while block := server.recv(_BLOCK):
            client.sendall(block)


def _once(head: bytes) -> bytes:
    """Return the head of a message after which the connection is closed."""
    head = re.sub(rb"(?i)\r\nconnection: *[^\r]*", b"", head[:-4])
    return head + b"\r\nConnection: close\r\n\r\n"
