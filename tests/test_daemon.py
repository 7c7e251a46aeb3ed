"""The admin client: every error of httpx is ours, odd replies are told, uploads need no memory."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from llava_ollama import resources
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.daemon_errors import door, failure
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    LlavaOllamaError,
    ModelBroken,
    ModelNotInstalled,
    UsageProblem,
)
from tests.proxy import Fault, Proxy

HOST = "http://127.0.0.1:1"
BUGS = {
    "CookieConflict",  # we use no cookies
    "HTTPStatusError",  # only `raise_for_status` raises it, which is not called
    "StreamError",
    "StreamConsumed",
    "StreamClosed",
    "ResponseNotRead",
    "RequestNotRead",
}
"""Errors of httpx that would be mistakes of this program, and keep their traceback."""


def errors_of_httpx() -> list[type[Exception]]:
    named = [getattr(httpx, name) for name in httpx.__all__]
    return [n for n in named if isinstance(n, type) and issubclass(n, Exception)]


@pytest.mark.parametrize("kind", errors_of_httpx(), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_has_a_translation(kind: type[Exception]) -> None:
    if kind.__name__ in BUGS:
        return
    with pytest.raises(DaemonError) as caught, door(HOST):
        raise kind("why")
    assert isinstance(caught.value.__cause__, kind)
    assert HOST in caught.value.message
    assert caught.value.hint
    if issubclass(kind, httpx.TimeoutException):
        assert isinstance(caught.value, DaemonTimeout)


def test_the_list_of_bugs_is_not_stale() -> None:
    assert {kind.__name__ for kind in errors_of_httpx()} >= BUGS


def test_other_errors_pass_the_door() -> None:
    with pytest.raises(KeyError), door(HOST):
        raise KeyError


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[Daemon]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with closing(Daemon(f"http://127.0.0.1:{server.server_address[1]}")) as daemon:
                yield daemon
        finally:
            server.shutdown()
            thread.join()


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args) -> None:  # noqa: A002 - the base class's name
        pass

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def saying(status: int, body: bytes) -> type[BaseHTTPRequestHandler]:
    class Saying(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(status, body)

        do_GET = do_DELETE = do_POST  # noqa: N815 - the base class's names

    return Saying


class Website(SimpleHTTPRequestHandler):
    def log_message(self, format, *args) -> None:  # noqa: A002 - the base class's name
        pass


def test_a_website_is_not_an_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(Website) as daemon:
        for call in (daemon.version, daemon.models, lambda: daemon.show("x")):
            with pytest.raises(DaemonUnreachable, match="not an Ollama"):
                call()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"models": {}, "version": 3}',
        b'{"models": [1]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body)[:20],
)
def test_replies_of_another_kind(body: bytes) -> None:
    with serving(saying(200, body)) as daemon:
        for call in (daemon.version, daemon.models):
            with pytest.raises(DaemonUnreachable):
                call()
        with pytest.raises(DaemonError):
            daemon.show("x")
        with pytest.raises(DaemonError):
            list(daemon.create("x", files={}, template="", system="", parameters={}))


def test_a_model_with_odd_values() -> None:
    odd = b'{"models": [{"name": null, "size": "many"}], "version": "0"}'
    with serving(saying(200, odd)) as daemon:
        assert [model.size for model in daemon.models()] == [0]


def test_a_deep_error_is_no_ollama_s() -> None:
    with serving(saying(500, b'{"error": ' * 100_000)) as daemon, pytest.raises(DaemonUnreachable):
        daemon.version()
    assert isinstance(failure(500, "[" * 100_000, HOST), DaemonUnreachable)
    assert isinstance(failure(302, "Found", HOST), DaemonUnreachable)


@pytest.mark.parametrize("size", ["1" + "0" * 400, "-1", "1e999", "true"])
def test_sizes_that_no_model_has(size: str) -> None:
    odd = f'{{"models": [{{"name": "x", "size": {size}}}], "version": "0"}}'.encode()
    with serving(saying(200, odd)) as daemon:
        assert daemon.models()[0].size in {0, 1}


@pytest.mark.parametrize(
    ("size", "expected"),
    [("336", 336), ("8192", 8192), ("336.0", 336)]
    + [(odd, None) for odd in ("0", "-1", "0.5", "8193", "1e999", "NaN", "1" + "0" * 400, '"1"')],
)
def test_image_sizes(size: str, expected: int | None) -> None:
    info = f'{{"capabilities": [], "projector_info": {{"clip.vision.image_size": {size}}}}}'
    with serving(saying(200, info.encode())) as daemon:
        assert daemon.show("x").image_size == expected


def test_a_daemon_too_old_to_name_capabilities() -> None:
    reply = json.dumps({"modelfile": "FROM x", "template": "{{ .Prompt }}", "details": {}})
    with serving(saying(200, reply.encode())) as daemon:
        with pytest.raises(DaemonError, match="what its models can do") as caught:
            daemon.show("x")
        assert caught.value.hint == "It is older than 0.6.4: update Ollama"


def test_show_reads_what_no_modelfile_can_say() -> None:
    digest = "a" * 64
    reply = {
        "modelfile": f'FROM /m/blobs/sha256-{digest}\nSYSTEM """a """ b\nNONSENSE x\n',
        "capabilities": ["completion"],
        "projector_info": None,
        "parameters": 'stop  "a\\"b"\nstop  "é\\n"\nnum_ctx 4096\ntop_p 1e-05\nunheard of',
    }
    shown = Shown.read("x", reply)
    assert shown.sources == (digest,)
    assert shown.parameters["stop"] == ('a"b', "é\n")
    assert (shown.parameters["num_ctx"], shown.parameters["top_p"]) == (4096, 1e-5)
    assert (shown.has_vision, shown.image_size, shown.package()) == (False, None, None)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, '{"error":"model \'x\' not found"}', ModelNotInstalled),
        (404, "<html>Not Found</html>", DaemonUnreachable),
        (404, "404 page not found", DaemonUnreachable),
        (503, '{"error":"server busy, please try again."}', DaemonBusy),
        (403, "", DaemonError),
        (500, "", DaemonUnreachable),
        (500, '{"error":{"message":"deep"}}', DaemonError),
        (500, '{"error":"write: no space left on device"}', DaemonError),
    ],
)
def test_failures_by_status_and_words(
    status: int, body: str, expected: type[LlavaOllamaError]
) -> None:
    error = failure(status, body, HOST)
    assert type(error) is expected
    assert HOST in error.message
    assert error.hint


def test_only_show_speaks_of_damage() -> None:
    with serving(saying(500, b'{"error":"EOF"}')) as daemon:
        with pytest.raises(ModelBroken, match="`x` is damaged"):
            daemon.show("x")
        with pytest.raises(DaemonError) as caught:
            daemon.delete("x")
        assert type(caught.value) is DaemonError


def test_an_error_inside_http_200_and_an_early_end() -> None:
    lines = b'{"status":"parsing GGUF"}\n\n{"error":"template error: unclosed action"}\n'
    for body, words in ((lines, "unclosed action"), (b'{"status":"parsing GGUF"}\n', "middle")):
        with serving(saying(200, body)) as daemon:
            statuses = daemon.create("x", files={}, template="", system="", parameters={})
            assert next(statuses) == "parsing GGUF"
            with pytest.raises(DaemonError, match=words):
                next(statuses)


@pytest.mark.parametrize("name", ["a", "a:b", "ns/a:b", "host.x:80/ns/a:b", "_a", "a.b-c"])
def test_names(name: str) -> None:
    assert full_name(name) == (name if ":b" in name else f"{name}:latest")


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", ":a", "a\n", "-a", "a//b", "é", "a" * 81])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageProblem):
        full_name(name)


class Sink(Quiet):
    """Takes a blob as it comes and keeps nothing."""

    got = 0

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left and (block := self.rfile.read(min(left, 1 << 16))):
            left -= len(block)
            type(self).got += len(block)
        self.answer(201, b"")


def test_a_large_upload_needs_little_memory() -> None:
    block, count = bytes(1 << 20), 256
    with serving(Sink) as daemon:
        daemon.upload("0" * 64, 1, [b"x"])  # what is loaded once is not counted
        Sink.got = 0
        tracemalloc.start()
        daemon.upload("0" * 64, count << 20, (block for _ in range(count)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert Sink.got == count << 20
    assert peak < 16 << 20


class Early(Quiet):
    """Has the blob already: answers without reading and hangs up."""

    def do_POST(self) -> None:
        self.close_connection = True
        self.answer(200, b"")

    def do_HEAD(self) -> None:
        self.answer(200, b"")


def test_a_blob_that_came_meanwhile_is_no_error() -> None:
    with serving(Early) as daemon:
        daemon.upload("0" * 64, 64 << 20, (bytes(1 << 20) for _ in range(64)))


def chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


@pytest.mark.ollama
def test_uploads_of_the_same_blob_at_once(daemon: Daemon) -> None:
    data = hashlib.shake_256(daemon.host.encode()).digest(32 << 20)
    digest = hashlib.sha256(data).hexdigest()
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def send() -> None:
        start.wait()
        with closing(Daemon(daemon.host)) as own:
            try:
                own.upload(digest, len(data), chunks(data))
            except LlavaOllamaError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert daemon.has_blob(digest)


@pytest.mark.ollama
def test_an_upload_of_other_bytes_is_refused(daemon: Daemon) -> None:
    with pytest.raises(DaemonError, match="digest mismatch"):
        daemon.upload("1" * 64, 3, [b"abc"])
    assert not daemon.has_blob("1" * 64)


@pytest.mark.ollama
def test_an_upload_that_is_cut_is_an_error(daemon: Daemon) -> None:
    data = resources.bundled("tiny-llava-mmproj-f16.gguf").read_bytes() + daemon.host.encode()
    digest = hashlib.sha256(data).hexdigest()
    with (
        Proxy(daemon.host, {0: Fault(refuse=True)}) as proxy,
        closing(Daemon(proxy.url)) as client,
        pytest.raises(DaemonError),
    ):
        client.upload(digest, len(data), [data])
    assert not daemon.has_blob(digest)


@pytest.mark.ollama
def test_a_model_that_is_not_there(daemon: Daemon) -> None:
    for call in (
        lambda: daemon.show("nobody"),
        lambda: daemon.delete("nobody"),
        lambda: daemon.copy("nobody", "somebody"),
    ):
        with pytest.raises(ModelNotInstalled, match="`nobody`"):
            call()
    assert isinstance(daemon.version(), str)
