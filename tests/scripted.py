"""A daemon that says what a test wants, one question at a time, and that can go and come back."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from llava_ollama.batch import canary
from llava_ollama.images import Vision, prepare

SIDE = 112
CANARIES = tuple(hashlib.sha256(p.data).hexdigest() for p in canary.drawn(Vision(SIDE)))
CRASH = 500, {"error": "model runner has unexpectedly stopped, check ollama server logs"}
BUSY = 503, {"error": "server busy, please try again. maximum pending requests exceeded"}
BROKEN = 500, {"error": "something else went wrong"}
BAD = 400, {"error": "this cannot be asked"}
STALL, HANG_UP = "stall", "hang up"


@dataclass(frozen=True)
class Heard:
    """A question about a picture, as it arrived."""

    number: int
    picture: str
    """The sha256 of what is sent of it."""
    prompt: str
    turns: int
    at_once: int
    """Questions that the daemon had at that moment, this one included."""
    options: dict[str, Any]

    @property
    def is_canary(self) -> bool:
        return self.picture in CANARIES


Reply = str | tuple[int, Any] | dict[str, Any]
"""The answer's text; a status and a body; or more of the answer than its text."""


def says(heard: Heard) -> Reply:
    """Answer with what was seen."""
    return f"I see picture {heard.picture[:8]} and {heard.prompt}"


def expected(path: Path, prompt: str = "Describe this image") -> str:
    """Return what `says` says of a picture file."""
    sent = prepare(path, SIDE).data
    return f"I see picture {hashlib.sha256(sent).hexdigest()[:8]} and {prompt}"


def of(path: Path) -> str:
    """Return what `Heard.picture` is for a picture file."""
    return hashlib.sha256(prepare(path, SIDE).data).hexdigest()


@dataclass
class Scripted:
    """Serves on the loopback interface; a context manager, and one that may be entered again."""

    reply: Callable[[Heard], Reply] = says
    model: str = "a"
    """Two with the same letter hold the same model."""
    heard: list[Heard] = field(default_factory=list)
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dying: threading.Lock = field(default_factory=threading.Lock)
    _now: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    met: threading.Event = field(default_factory=threading.Event)
    """Set by the first question that is no canary."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def about(self, picture: str) -> list[Heard]:
        return [one for one in self.heard if one.picture == picture]

    @property
    def asked(self) -> list[Heard]:
        """What was asked, but for canaries."""
        return [one for one in self.heard if not one.is_canary]

    def __enter__(self) -> Self:
        self.over.clear()
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.die()

    def die(self) -> None:
        """End as a process ends: whoever waits finds the connection broken."""
        self.over.set()
        with self._dying:
            if self._thread.is_alive():
                self._server.shutdown()
                self._thread.join()
                self._server.server_close()
                self._server.hang_up()

    def shown(self) -> dict[str, Any]:
        blobs = [f"FROM /m/blobs/sha256-{letter * 64}\n" for letter in (self.model, "f")]
        return {
            "modelfile": "".join(blobs),
            "capabilities": ["completion", "vision"],
            "projector_info": {"clip.vision.image_size": SIDE},
        }

    def chat(self, body: dict[str, Any]) -> Reply:
        first = next(message for message in body["messages"] if message.get("images"))
        picture = base64.b64decode(first["images"][0])
        with self._lock:
            self._now += 1
            heard = Heard(
                number=len(self.heard),
                picture=hashlib.sha256(picture).hexdigest(),
                prompt=body["messages"][-1]["content"].removeprefix("[img]\n"),
                turns=len(body["messages"]),
                at_once=self._now,
                options=body.get("options") or {},
            )
            self.heard.append(heard)
        if not heard.is_canary:
            self.met.set()
        try:
            return self.reply(heard)
        finally:
            with self._lock:
                self._now -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Scripted) -> None:
        self.script = script
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", script.port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        self.open.add(request)
        return request, address

    def hang_up(self) -> None:
        for request in self.open:
            try:
                request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed long ago
            request.close()

    def handle_error(self, _request, _client_address) -> None:
        pass  # clients that hang up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format, *args) -> None:  # noqa: A002 - the base class's name
        pass

    def do_GET(self) -> None:  # noqa: PLR0911 - a path each
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        script = self.server.script
        if self.path == "/api/version":
            return self._send(200, {"version": "0.34.4"})
        if self.path == "/api/show":
            return self._send(200, script.shown())
        if self.path.startswith("/api/blobs/"):
            return self._send(200, {})
        if self.path != "/api/chat":
            return self._send(404, {"error": "no such path"})
        reply = script.chat(body)
        if reply in (STALL, HANG_UP):
            if reply == STALL:
                script.over.wait(30)
            self.close_connection = True
            return None
        if isinstance(reply, tuple):
            return self._send(*reply)
        more = {"content": reply} if isinstance(reply, str) else reply
        said = {"done": True, "done_reason": "stop", "eval_count": 7, **more}
        said["message"] = {"role": "assistant", "content": said.pop("content")}
        return self._send(200, {"model": "x", "created_at": "2026-11-25T09:15:47Z", **said})

    do_POST = do_HEAD = do_GET  # noqa: N815 - the base class's names

    def _send(self, status: int, said: Any) -> None:
        body = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def colourful(folder: Path, count: int) -> list[Path]:
    """Write so many different pictures, each of them small."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number % 256, 40 + number // 256, 90)).save(path)
    return paths


def failing(replies: Iterable[Reply], picture: str | None = None) -> Callable[[Heard], Reply]:
    """Give these replies, each once, to questions about `picture` or any; then `says`."""
    left = iter(replies)
    lock = threading.Lock()

    def reply(heard: Heard) -> Reply:
        if heard.is_canary or picture not in {None, heard.picture}:
            return says(heard)
        with lock:
            reply = next(left, None)
        return says(heard) if reply is None else reply

    return reply
