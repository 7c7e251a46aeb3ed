"""A registry on the loopback interface, as much of one as a daemon needs to pull from.

A plain `registry:2` does not do: the daemon wants a `Location` for each blob, then asks there for
ranges.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from llava_ollama.store.manifests import MODEL, PROJECTOR


@dataclass
class LoopbackRegistry:
    """Serves models from disk; a context manager."""

    manifests: dict[str, bytes] = field(default_factory=dict)
    """By `namespace/model/tag`."""
    blobs: dict[str, Path | bytes] = field(default_factory=dict)
    """By sha256."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_at: str | None = None
    """Where the bytes are said to be; None for here."""
    hang_after: int | None = None
    """Say nothing more after so many bytes of a blob, until `resume` is set."""
    hanging: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"shop": self})
        server = _Server(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self._stack.callback(server.server_close)
        self._stack.callback(thread.join)
        self._stack.callback(server.shutdown)
        self.port = server.server_port
        return self

    def __exit__(self, *_exc: object) -> None:
        self.resume.set()
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, tag: str, model: Path, projector: Path) -> None:
        """Offer a pair as `library/<tag>`; without more layers, as 0.24.0 takes 1 s for each."""
        config = json.dumps({"model_format": "gguf", "model_family": "llama"}).encode()
        layers = [self._layer(MODEL, model), self._layer(PROJECTOR, projector)]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self._layer("application/vnd.docker.container.image.v1+json", config),
            "layers": layers,
        }
        name, _, version = tag.partition(":")
        self.manifests[f"library/{name}/{version}"] = json.dumps(manifest).encode()

    def blobs_asked_for(self) -> int:
        return sum("/blobs/" in path for _, path in self.requests)

    def _layer(self, media_type: str, content: Path | bytes) -> dict[str, Any]:
        data = content.read_bytes() if isinstance(content, Path) else content
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


class _Server(ThreadingHTTPServer):
    def handle_error(self, _request, _client_address) -> None:
        pass  # clients that hang up are what this is for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shop: LoopbackRegistry

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.shop.requests.append((self.command, self.path))
        parts = self.path.strip("/").split("/")
        if parts[0] == "direct":
            self._range(parts[1])
        elif len(parts) == 5 and parts[3] == "manifests":
            text = self.shop.manifests.get("/".join((*parts[1:3], parts[4])))
            self._answer(200 if text else 404, text or b"{}")
        elif len(parts) == 5 and parts[3] == "blobs":
            digest = parts[4].removeprefix("sha256:")
            if digest not in self.shop.blobs:
                self._answer(404, b"{}")
            elif self.command == "HEAD":
                self._answer(200, b"", length=len(self._content(digest)))
            else:
                self._answer(
                    200, b"", location=f"{self.shop.bytes_at or self.shop.url}/direct/{digest}"
                )
        else:
            self._answer(404, b"{}")

    def _content(self, digest: str) -> bytes:
        content = self.shop.blobs[digest]
        return content.read_bytes() if isinstance(content, Path) else content

    def _range(self, digest: str) -> None:
        content = self._content(digest)
        begin, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = content[int(begin) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        limit = self.shop.hang_after
        if limit is not None and len(part) > limit:
            self.wfile.write(part[:limit])
            self.shop.hanging.set()
            self.shop.resume.wait()
            part = part[limit:]
        self.wfile.write(part)

    def _answer(
        self, status: int, body: bytes, *, length: int | None = None, location: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
