"""A `llama-server` at an address: the real one, and everything that may answer in its place."""

from __future__ import annotations

import asyncio
import json
import os
import socketserver
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from llava_ollama.client import Llava
from llava_ollama.engine.connection import address
from llava_ollama.engine.llamacpp import AsyncLlamaCppEngine, LlamaCppEngine
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    IncompleteAnswer,
    LlavaOllamaError,
    ModelLoading,
    RunnerCrashed,
    UsageProblem,
)
from llava_ollama.gguf.mend import mend
from llava_ollama.resources import bundled
from tests.asking import SENTENCE, ask, circle
from tests.daemons.build import LLAMA_CPP, cache_root
from tests.daemons.running import free_port
from tests.published import published_model, published_projector

if TYPE_CHECKING:
    from pathlib import Path

BINARY = cache_root() / f"llama-{LLAMA_CPP}" / "llama-server"
"""Found now, since each test has a home of its own."""


def http(status: int, content: Any) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = b"HTTP/1.1 %d Said\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(data)) + data


def error(status: int, sentence: str, kind: str = "") -> bytes:
    return http(status, {"error": {"code": status, "message": sentence, "type": kind}})


def events(*parts: dict[str, Any]) -> bytes:
    """Write an answer that is streamed, up to wherever it goes."""
    body = b"".join(b"data: %s\n\n" % json.dumps(part).encode() for part in parts)
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n"
    return head + body


PROPS = {
    "default_generation_settings": {},
    "modalities": {"vision": True},
    "media_marker": "<__media_abc__>",
}
PIECE = {"content": "A red", "stop": False}
LAST = {"content": " circle.", "stop": True, "stop_type": "eos", "tokens_evaluated": 78}


class Answering(socketserver.ThreadingTCPServer):
    """Sends prepared bytes for each path, then closes the connection; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, **replies: bytes | None) -> None:
        self.replies = {"props": http(200, PROPS), "completion": events(PIECE, LAST), **replies}
        self.asked: list[str] = []
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), Conversation)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class Conversation(socketserver.StreamRequestHandler):
    server: Answering

    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode().strip("/")
        headers = {}
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.server.asked.append(path)
        special = b"<|eot_id|>" in body
        tokens = http(200, {"tokens": [1, 2, 3] if special else [0]})
        reply = self.server.replies.get(path, tokens if path == "tokenize" else http(404, b"gone"))
        if reply is None:  # says nothing, until the test is over
            self.server.ended.wait(30)
        else:
            self.wfile.write(reply)


def answers(url: str, **keywords: Any) -> list[tuple[type[LlavaOllamaError], str, str]]:
    """Ask in both ways; return what was raised: type, message and hint."""
    raised = []

    async def asynchronous() -> None:
        engine = AsyncLlamaCppEngine(url, **keywords)
        try:
            await engine.answer(ask())
        finally:
            await engine.close()

    engine = LlamaCppEngine(url, **keywords)
    for use in (lambda: engine.answer(ask()), lambda: asyncio.run(asynchronous())):
        with pytest.raises(LlavaOllamaError) as caught:
            use()
        raised.append((type(caught.value), str(caught.value), caught.value.hint or ""))
    engine.close()
    return raised


REFUSALS = {
    "another program": (
        {"props": http(404, b"<html>")},
        DaemonUnreachable,
        "not as a llama-server",
    ),
    "a page": ({"props": http(200, b"<html>")}, DaemonUnreachable, "not as a llama-server"),
    "other JSON": ({"props": http(200, {"a": 1})}, DaemonUnreachable, "not as a llama-server"),
    "a list": ({"props": http(200, [1])}, DaemonUnreachable, "not as a llama-server"),
    "ollama": ({"props": http(404, {"error": "x"})}, DaemonUnreachable, "not as a llama-server"),
    "no HTTP": ({"props": b"SSH-2.0-Open\r\n"}, DaemonUnreachable, "not as a llama-server"),
    "silence, then gone": ({"props": b""}, DaemonUnreachable, "not as a llama-server"),
    "odd tokens": ({"tokenize": http(200, {"t": 1})}, DaemonUnreachable, "not as a llama-server"),
    "a key": ({"props": error(401, "Invalid API Key")}, DaemonError, "asks for an API key"),
    "loading": ({"props": error(503, "Loading model")}, ModelLoading, "still loading its model"),
    "busy": ({"completion": error(503, "No slot")}, DaemonBusy, "is busy: No slot"),
    "no vision": (
        {"props": http(200, PROPS | {"modalities": {"vision": False}})},
        UsageProblem,
        "has no projector",
    ),
    "not Llama-3": (
        {"tokenize": http(200, {"tokens": [*range(20)]})},
        UsageProblem,
        "has no Llama-3 vocabulary",
    ),
    "refused": ({"completion": error(400, "Field 'x'")}, DaemonError, "refused the request: Field"),
    "crashed": ({"completion": b""}, RunnerCrashed, "broke the connection off without an answer"),
    "fails midway": (
        {"completion": events(PIECE, {"error": {"code": 500, "message": "Compute error."}})},
        DaemonError,
        "refused the request: Compute error",
    ),
    "cut": ({"completion": events(PIECE)}, IncompleteAnswer, "ended before its last part"),
    "half a line": (
        {"completion": events(PIECE) + b'data: {"cont'},
        IncompleteAnswer,
        "ended before its last part: a line is not JSON",
    ),
    "no stream": ({"completion": http(200, {"a": 1})}, IncompleteAnswer, "before its last part"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_whatever_answers_is_told_by_type_and_sentence(case):
    replies, kind, words = REFUSALS[case]
    with Answering(**replies) as server:
        plain, asynchronous = answers(server.url)
    assert plain == asynchronous
    assert plain[0] is kind
    assert words in plain[1]
    assert server.url in plain[1]
    assert not plain[1].endswith(".")


def test_nothing_is_sent_to_a_server_that_cannot_see():
    with Answering(props=http(200, PROPS | {"modalities": {"vision": False}})) as server:
        answers(server.url)
        assert set(server.asked) == {"props"}


def test_an_answer_that_is_cut_keeps_what_came():
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + events(PIECE).split(b"\r\n\r\n")[1]
    with Answering(completion=cut) as server:
        engine = LlamaCppEngine(server.url)
        with pytest.raises(IncompleteAnswer) as caught:
            engine.answer(ask())
        assert caught.value.text == "A red"
        engine.close()


def test_a_limit_and_missing_timings_are_understood():
    with Answering(completion=events(PIECE, LAST | {"stop_type": "limit"})) as server:
        engine = LlamaCppEngine(server.url)
        answer = engine.answer(ask())
        engine.close()
    assert (answer.text, answer.finish) == ("A red circle.", "length")
    assert (answer.usage.prompt_tokens, answer.times.prompt) == (78, 0.0)


def test_silence_is_a_timeout():
    with Answering(completion=None) as server:
        for kind, message, hint in answers(server.url, timeout=0.3):
            assert kind is DaemonTimeout
            assert message.endswith("did not answer within 0.3 s")
            assert "`timeout`" in hint


def test_nothing_listens():
    url = f"http://127.0.0.1:{free_port()}"
    for kind, message, hint in answers(url):
        assert kind is DaemonUnreachable
        assert message.startswith(f"nothing answers at `{url}`: ")
        assert "llama-server --model FILE --mmproj FILE" in hint


def test_the_servers_facts_are_asked_once():
    with Answering() as server:
        engine = LlamaCppEngine(server.url)
        assert engine.image_size() == 336
        assert [engine.answer(ask()).text for _ in range(3)] == ["A red circle."] * 3
        engine.close()
        assert server.asked == ["props", "tokenize", "tokenize"] + ["completion"] * 3


def test_a_proxy_is_never_used_for_loopback(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Answering() as server:
        engine = LlamaCppEngine(server.url)
        assert engine.answer(ask()).text == "A red circle."
        engine.close()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("box:9000/", "http://box:9000"),
        ("http://box", "http://box:80"),
        ("https://box/llama/", "https://box:443/llama"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_addresses(given, used):
    assert address(given) == used


@pytest.mark.parametrize(
    "given", ["", "ftp://x", "http://", "a b", "x:port", "x:99999", "[::1", "x:0"]
)
def test_what_is_no_address(given):
    with pytest.raises(UsageProblem, match="is not the address of a llama-server"):
        LlamaCppEngine(given)


class RealServer:
    """Ollama's own build of `llama-server`, on a port that it gets once and keeps."""

    def __init__(self, model: Path, projector: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._files = ("--model", model, "--mmproj", projector)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        options = ("--port", str(self.port), "--threads", "1", "--parallel", "1", *more)
        self._process = subprocess.Popen(
            [BINARY, *self._files, *options, "--ctx-size", "2048", "--offline"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        pytest.fail(f"llama-server did not start: exit code {self._process.poll()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture(params=["bundled", "published, mended"])
def real_server(request: pytest.FixtureRequest, tmp_path: Path):
    if not BINARY.exists():
        reason = "llama-server is not built: run `make daemons` (10 minutes, once)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    model, projector = bundled("tiny-llava-int4.gguf"), bundled("tiny-llava-mmproj-f16.gguf")
    if request.param != "bundled":
        published = published_projector(projector, tmp_path / "mmproj.gguf", feature_layer=True)
        projector = mend(published, tmp_path / "mmproj-mended.gguf").path
        model = published_model(model, tmp_path / "model.gguf")
    server = RealServer(model, projector)
    server.start()
    yield server
    server.stop()


@pytest.mark.ollama
def test_the_real_llama_server(real_server):
    engine = LlamaCppEngine(real_server.url)
    answer = engine.answer(ask())
    assert answer.text == SENTENCE
    assert (answer.usage.prompt_tokens, answer.finish) == (78, "stop")
    assert "".join(map(str, engine.stream(ask()))) == SENTENCE

    # Another process has another picture marker.
    real_server.stop()
    real_server.start()
    assert engine.answer(ask()).text == SENTENCE
    engine.close()

    async def asynchronous() -> str:
        engine = AsyncLlamaCppEngine(real_server.url)
        answer = await engine.answer(ask())
        await engine.close()
        return answer.text

    assert asyncio.run(asynchronous()) == SENTENCE


@pytest.mark.ollama
@pytest.mark.parametrize("real_server", ["bundled"], indirect=True)
def test_a_server_with_a_key(real_server, monkeypatch):
    real_server.stop()
    real_server.start("--api-key", "open sesame")
    with Llava.server(real_server.url) as llava, pytest.raises(DaemonError) as caught:
        llava.ask(circle())
    assert "LLAMA_API_KEY" in str(caught.value.hint)
    with Llava.server(real_server.url, api_key="open sesame") as llava:
        assert str(llava.ask(circle())) == SENTENCE
    monkeypatch.setenv("LLAMA_API_KEY", "open sesame")
    with Llava.server(real_server.url) as llava:
        assert str(llava.ask(circle())) == SENTENCE
