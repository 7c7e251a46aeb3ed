"""A Hub on the loopback interface that speaks the real one's protocol to the real huggingface_hub.

As on huggingface.co, a file's address redirects to another origin (here: another port), which
serves the bytes and understands `Range`. Faults are queued; each request takes the next one.

`python -m tests.hub` fetches one file in a process of its own: huggingface_hub reads its
environment at import, and only a process can be killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from llava_ollama.catalog import WeightFile
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.progress import Reporter
from llava_ollama.weights import Weights
from tests.memory import peak

# Otherwise huggingface_hub asks huggingface.co for a list of user agents, once per process.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

ROOT = Path(__file__).parent.parent
SIGNATURE = "5ecret"
"""Part of every signed address; no message of ours may contain it."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; the default is nothing."""

    status: int | None = None
    code: str | None = None
    """The Hub's `X-Error-Code`."""
    retry_after: int | None = None
    cut: int | None = None
    """Hang up after so many bytes of the answer's body."""
    reset: bool = False
    """Hang up with a TCP reset."""
    pause: int | None = None
    """Stop after so many bytes until `LoopbackHub.resume` is set."""
    ignore_range: bool = False
    wrong: bool = False
    """Other bytes, as many."""
    surplus: int = 0
    """So many bytes more than were promised, with a length header that says so."""
    size: int | None = None
    """A size that the Hub claims."""
    sizeless: bool = False
    """The Hub does not tell the size."""
    bare: bool = False
    """An answer without commit and ETag, as from a login page."""


FINE = Fault()


@dataclass(frozen=True)
class Published:
    """A file in a repository. `etag` is its sha256, as of every file in LFS."""

    path: Path
    size: int
    etag: str
    commit: str


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    server: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class LoopbackHub:
    """Serves files from disk; a context manager."""

    files: dict[tuple[str, str, str], Published] = field(default_factory=dict)
    """By repository, revision and name."""
    on_head: deque[Fault] = field(default_factory=deque)
    on_body: deque[Fault] = field(default_factory=deque)
    always_head: Fault = FINE
    always_body: Fault = FINE
    requests: list[Request] = field(default_factory=list)
    served: int = 0
    """Bytes of files that were written to sockets."""
    cdn: str | None = None
    """Where the bytes are said to be; None for here."""
    resume: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._hub = self._serve("hub")
        self._cdn = self._serve("cdn")
        return self

    def __exit__(self, *_exc: object) -> None:
        self.resume.set()
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._cdn.server_address[1]}"

    def publish(
        self, path: Path, repo: str, *, revision: str = "main", name: str | None = None
    ) -> WeightFile:
        """Put the file at `path` into `repo`; the answer is pinned to a commit, size and sha256."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = name or path.name
        commit = hashlib.sha1(f"{repo}{name}{sha256}".encode()).hexdigest()
        published = Published(path, path.stat().st_size, sha256, commit)
        self.files[repo, revision, name] = self.files[repo, commit, name] = published
        return WeightFile(name=name, repo=repo, revision=commit, size=published.size, sha256=sha256)

    def bodies(self) -> list[Request]:
        """Return the requests for bytes, in order."""
        return [request for request in self.requests if request.server == "cdn"]

    def fault(self, queue: deque[Fault], otherwise: Fault) -> Fault:
        with self._lock:
            return queue.popleft() if queue else otherwise

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def count(self, size: int) -> None:
        with self._lock:
            self.served += size

    def by_etag(self, etag: str) -> Published:
        return next(file for file in self.files.values() if file.etag == etag)

    def _serve(self, name: str) -> _Server:
        server = self._stack.enter_context(_Server(self, name))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(server.shutdown)
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopbackHub, name: str) -> None:
        self.hub = hub
        self.name = name
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, _request, _client_address) -> None:
        error = sys.exception()
        # A client that hangs up is what these tests are about; all else is a bug of this file.
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format, *args) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self._note()
        self._resolve(self.server.hub.fault(self.server.hub.on_head, self.server.hub.always_head))

    def do_GET(self) -> None:
        self._note()
        if self.server.name == "cdn":
            self._send_file()
        else:
            self._resolve(FINE)

    def _note(self) -> None:
        get = self.headers.get
        self.server.hub.note(
            Request(self.command, self.server.name, self.path, get("Range"), get("Authorization"))
        )

    def _resolve(self, fault: Fault) -> None:
        """Answer as the Hub does for `/{owner}/{name}/resolve/{revision}/{file}`."""
        hub = self.server.hub
        repo, _, rest = urlsplit(self.path).path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        repo, revision, name = unquote(repo), unquote(revision), unquote(name)
        if fault.status is not None:
            return self._answer(fault.status, self._headers(fault))
        file = hub.files.get((repo, revision, name))
        if file is None:
            code = self._missing(repo, revision)
            return self._answer(404, {"X-Error-Code": code, "X-Error-Message": "not here"})
        if fault.bare:
            return self._answer(200, {"Content-Type": "text/html"})
        headers = {
            "Location": f"{hub.cdn or hub.cdn_url}/cdn/{file.etag}?Signature={SIGNATURE}",
            "X-Repo-Commit": file.commit,
            "X-Linked-ETag": f'"{file.etag}"',
            "ETag": f'"{file.etag[:40]}"',
        }
        if not fault.sizeless:
            headers["X-Linked-Size"] = str(fault.size or file.size)
        return self._answer(302, headers)

    def _missing(self, repo: str, revision: str) -> str:
        files = self.server.hub.files
        if not any(known == repo for known, _, _ in files):
            return "RepoNotFound"
        if not any((known, at) == (repo, revision) for known, at, _ in files):
            return "RevisionNotFound"
        return "EntryNotFound"

    def _headers(self, fault: Fault) -> dict[str, str]:
        headers = {}
        if fault.code is not None:
            headers["X-Error-Code"] = fault.code
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        return headers

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self) -> None:
        hub = self.server.hub
        fault = hub.fault(hub.on_body, hub.always_body)
        if fault.status is not None:
            return self._answer(fault.status, self._headers(fault))
        file = hub.by_etag(urlsplit(self.path).path.rpartition("/")[2])
        start = 0
        wanted = self.headers.get("Range")
        if wanted is not None and not fault.ignore_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= file.size > 0:
            return self._answer(416, {"Content-Range": f"bytes */{file.size}"})
        total = file.size + fault.surplus
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", f'"{file.etag}"')
        self.end_headers()
        return self._stream(file, start, fault)

    def _stream(self, file: Published, start: int, fault: Fault) -> None:
        hub = self.server.hub
        sent = 0
        with file.path.open("rb") as source:
            source.seek(start)
            while block := source.read(self._next(sent, fault)):
                self.wfile.write(bytes(len(block)) if fault.wrong else block)
                sent += len(block)
                hub.count(len(block))
                if sent == fault.pause:
                    hub.paused.set()
                    hub.resume.wait()
                if sent == fault.cut:
                    return self._hang_up(fault)
        if fault.surplus:
            self.wfile.write(bytes(fault.surplus))
        return None

    def _next(self, sent: int, fault: Fault) -> int:
        """Return how much to send at once, so that `cut` and `pause` are met exactly."""
        marks = [mark - sent for mark in (fault.cut, fault.pause) if mark and mark > sent]
        return min([_BLOCK, *marks])

    def _hang_up(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


def make_file(path: Path, size: int, seed: int = 0) -> Path:
    """Write `size` bytes that no two blocks share."""
    with path.open("wb") as file:
        block = hashlib.shake_256(str(seed).encode()).digest(_BLOCK - 8)
        for number in range(size // _BLOCK):
            file.write(number.to_bytes(8, "big") + block)
        file.write(block[: size % _BLOCK])
    return path


class Speaking(Reporter):
    """Tells another process what happens, a line each."""

    def advanced(self, task: str, amount: int) -> None:
        self._say("advanced", task, amount)

    def restarted(self, task: str, done: int = 0) -> None:
        self._say("restarted", task, done)

    def note(self, message: str) -> None:
        self._say("note", message)

    def _say(self, *parts: object) -> None:
        sys.stdout.write(json.dumps(parts) + "\n")
        sys.stdout.flush()


def start_fetch(
    file: WeightFile,
    downloads: Path,
    *,
    environment: dict[str, str] | None = None,
    largest: int | None = None,
) -> subprocess.Popen[str]:
    """Fetch `file` in another process; it says what happens on its standard output, as JSON.

    `largest` is the number of bytes that its operating system lets it write into a file.
    """
    home = downloads.parent
    clean = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    job = {**asdict(file), "path": None, "downloads": str(downloads), "largest": largest}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.hub", json.dumps(job)],
        cwd=ROOT,
        env=clean | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _fetch(job: dict[str, Any]) -> list[object]:
    if (largest := job.pop("largest")) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    weights = Weights(downloads=Path(job.pop("downloads")), reporter=Speaking(), wait=0.01)
    try:
        local = weights.fetch(WeightFile(**job))
    except LlavaOllamaError as exc:
        return ["error", type(exc).__name__, str(exc), exc.hint]
    return ["done", str(local.path), local.sha256, peak()]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_fetch(json.loads(sys.argv[1]))) + "\n")
