"""Servers that are no Ollama, or an ill one: what no real daemon can be made to be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SEEING = {
    "modelfile": f"FROM /m/blobs/sha256-{'a' * 64}\nFROM /m/blobs/sha256-{'b' * 64}\n",
    "capabilities": ["completion", "vision"],
    "projector_info": {"clip.vision.image_size": 112},
}
"""`/api/show` of a model with vision, as far as it is read before a picture is."""
BLIND = {**SEEING, "capabilities": ["completion"]}
BARE = {"/api/version": {"version": "0.24.0"}, "/api/tags": {"models": []}}
"""An Ollama without models."""
KINDS: dict[str, dict[str, Any]] = {
    "bare": BARE,
    "stranger": {"": "<html><body>It works!</body></html>"},
    "other JSON": {"": {"hello": "world"}},
    "seeing": {**BARE, "/api/show": SEEING},
    "busy": {
        **BARE,
        "/api/show": SEEING,
        "/api/chat": (503, {"error": "server busy, please try again."}),
    },
    "loading": {"/props": (503, {"error": {"code": 503, "message": "Loading model"}})},
    "damaged": {**BARE, "/api/show": (500, {"error": "unexpected EOF"})},
    "blind": {**BARE, "/api/show": BLIND},
    "elsewhere": {
        **BARE,
        "/api/tags": {"models": [{"name": "one:latest", "digest": "0" * 64, "size": 1}]},
        "/api/show": SEEING,
        "/api/blobs": {},
    },
    "old": {**BARE, "/api/show": {"modelfile": "", "template": ""}},
    "odd names": {**BARE, "/api/tags": {"models": [{"name": "a b\x1b]0;x\x07", "size": 10**400}]}},
    "silent": {},
}
"""Path → reply, or status and reply; "" is any path, and a path without one has no model.

"silent" never replies.
"""


@contextmanager
def stand_in(
    kind: str | Mapping[str, Any], *, on_request: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Serve one of `KINDS`, or other replies, on the loopback interface; yield its address."""
    replies = KINDS[kind] if isinstance(kind, str) else kind
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            on_request()
            if kind == "silent":
                over.wait(30)
            path = "/" + "/".join(self.path.split("/")[1:3])
            reply = replies.get(path, replies.get(""))
            status = 200
            if reply is None:
                status, reply = 404, {"error": "model 'x' not found"}
            elif isinstance(reply, tuple):
                status, reply = reply
            body = (reply if isinstance(reply, str) else json.dumps(reply) + "\n").encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_HEAD = do_GET  # noqa: N815 - the base class's names

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()
