"""The Python API without a daemon: its shape, what it takes as a picture, and every failure."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import llava_ollama
from llava_ollama import Answer, AsyncChat, AsyncLlava, Chat, Chunk, Llava
from llava_ollama.engine.interface import Message, Request, Times, Usage
from llava_ollama.engine.ollama import OllamaEngine
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    ImageError,
    IncompleteAnswer,
    LlavaOllamaError,
    ModelLoading,
    ModelNotInstalled,
    RunnerCrashed,
    UsageProblem,
)
from llava_ollama.images import Vision, prepare
from llava_ollama.progress import Reporter
from llava_ollama.turns import request_of
from tests.modes import MODES, answer
from tests.stand_ins import BARE, SEEING, stand_in

HEAVY = ("ollama", "httpx", "pydantic", "huggingface_hub", "PIL", "jinja2", "rich", "xllamacpp")


# Shape


def public(kind: type) -> dict[str, Any]:
    return {n: m for n, m in vars(kind).items() if not n.startswith("_") or n == "__init__"}


def described(member: Any) -> str:
    """Return a signature in which sync and async look the same."""
    function = member.__func__ if isinstance(member, classmethod) else member
    text = str(inspect.signature(function))
    return text.replace("Async", "")


@pytest.mark.parametrize(("plain", "other"), [(Llava, AsyncLlava), (Chat, AsyncChat)])
def test_sync_and_async_have_the_same_names_and_signatures(plain, other):
    ours, theirs = public(plain), public(other)
    assert ours.keys() == theirs.keys()
    assert {n: described(m) for n, m in ours.items()} == {
        n: described(m) for n, m in theirs.items()
    }


@pytest.mark.parametrize("kind", [Llava, AsyncLlava, Chat, AsyncChat])
def test_every_method_has_a_docstring(kind):
    methods = {n: m for n, m in public(kind).items() if n != "__init__"}
    assert not [name for name, member in methods.items() if not inspect.getdoc(member)]


def test_all_that_is_public_can_be_imported():
    namespace: dict[str, Any] = {}
    exec("from llava_ollama import *", namespace)
    assert llava_ollama.__all__ == sorted(llava_ollama.__all__)
    assert {"Llava", "AsyncLlava", "Answer", "LlavaOllamaError"} <= set(llava_ollama.__all__)
    assert all(namespace[name] is getattr(llava_ollama, name) for name in llava_ollama.__all__)
    assert set(llava_ollama.__all__) <= set(dir(llava_ollama))
    with pytest.raises(AttributeError, match="nothing"):
        _ = llava_ollama.nothing


@pytest.mark.parametrize("code", ["", "Llava; Llava()", "AsyncLlava; AsyncLlava().chat()"])
def test_nothing_heavy_is_imported_before_the_first_question(code):
    code = f"import sys, llava_ollama{code and '; from llava_ollama import ' + code}"
    done = python(f"{code}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Pictures and turns


class Recorder:
    """An engine that keeps what it is asked, and answers with its number."""

    name = "recorder"

    def __init__(self, *, sees: bool = True) -> None:
        self.requests: list[Request] = []
        self.closed = self.stopped = 0
        self._sees = sees

    def image_size(self) -> int:
        if not self._sees:
            raise UsageProblem("blind")
        return 112

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        text = f"answer {len(self.requests)}"
        return Answer(text, "stop", Usage(1, 1), Times(0, 0, 0, 0), None, self.name)

    def stream(self, request: Request) -> Generator[Chunk]:
        try:
            whole = self.answer(request)
            yield Chunk("answer ")
            if request.messages[-1].text == "fail":
                raise IncompleteAnswer("cut", text="answer ")
            yield Chunk(whole.text.removeprefix("answer "), whole)
        finally:
            self.stopped += 1

    def close(self) -> None:
        self.closed += 1


class AsyncRecorder:
    """The same, for asyncio."""

    name = "recorder"

    def __init__(self, *, sees: bool = True) -> None:
        self.inner = Recorder(sees=sees)

    async def image_size(self) -> int:
        return self.inner.image_size()

    async def answer(self, request: Request) -> Answer:
        return self.inner.answer(request)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        with closing(self.inner.stream(request)) as chunks:
            for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        self.inner.close()


class Notes(Reporter):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def red() -> Image.Image:
    return Image.new("RGB", (60, 40), (220, 30, 30))


def png(picture: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (picture or red()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "red.png"
    file.write_bytes(png())
    return file


SOURCES: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file in memory": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "PIL image": lambda _: red(),
    "PIL image from a file": Image.open,
    "array": lambda _: np.asarray(red()),
    "data URI": lambda path: f"data:;base64,{base64.b64encode(path.read_bytes()).decode()}",
    "prepared": lambda path: prepare(path, 112),
}


def pixels(request: Request) -> list[Any]:
    pictures = request.messages[-1].pictures
    return [
        (image.mode, image.size, image.getpixel((image.width // 2, image.height // 2)))
        for image in (Image.open(io.BytesIO(p.data)) for p in pictures)
    ]


ONE = [("RGB", (112, 112), (220, 30, 30))]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_picture_may_come_as(kind, path):
    engine, other = Recorder(), AsyncRecorder()
    for several in (False, True):
        for llava_kind, into in (("ask", engine), ("async ask", other)):
            source = SOURCES[kind](path)
            pictures = [source] if several else source
            answer(llava_kind, pictures, "What?", engine=into)
            if hasattr(source, "close"):
                source.close()
    requests = engine.requests + other.inner.requests
    assert [pixels(request) for request in requests] == [ONE] * 4
    assert {request.messages[-1].text for request in requests} == {"What?"}


def test_standard_input_is_a_picture(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(png())))
    engine = Recorder()
    Llava(engine=engine).ask("-")
    assert pixels(engine.requests[0]) == ONE


def test_several_pictures_keep_their_order(path):
    engine = Recorder()
    blue = Image.new("RGB", (50, 50), (0, 0, 255))
    several: list[Any] = [path, blue, png()]
    for pictures in (several, tuple(several), iter(several)):
        Llava(engine=engine).ask(pictures)
        seen = [(size, colour) for _, size, colour in pixels(engine.requests[-1])]
        red_one = ((112, 112), (220, 30, 30))
        assert seen == [red_one, ((112, 112), (0, 0, 255)), red_one]


@pytest.mark.parametrize("kind", ["ask", "stream", "chat", "async ask", "async stream"])
def test_the_engine_may_be_left_to_pad(kind, path):
    engine = Recorder() if "async" not in kind else AsyncRecorder()
    asked(kind, engine, path)
    requests = engine.requests if isinstance(engine, Recorder) else engine.inner.requests
    assert pixels(requests[-1]) == [("RGB", (60, 40), (220, 30, 30))]


def asked(kind: str, engine: Any, path: Path) -> None:
    async def later() -> None:
        llava = AsyncLlava(engine=engine)
        if kind == "async ask":
            await llava.ask(path, decode="native")
        else:
            _ = [chunk async for chunk in llava.stream(path, decode="native")]

    if kind.startswith("async"):
        asyncio.run(later())
        return
    llava = Llava(engine=engine)
    if kind == "ask":
        llava.ask(path, decode="native")
    elif kind == "stream":
        _ = [*llava.stream(path, decode="native")]
    else:
        llava.chat(decode="native").ask("What?", path)


def test_what_the_model_sees_can_be_asked_for():
    assert Llava(engine=Recorder()).vision() == Vision(112)
    assert asyncio.run(AsyncLlava(engine=AsyncRecorder()).vision()) == Vision(112)


@pytest.mark.parametrize(
    "wrong", [{"prompt": None}, {"prompt": 3}, {"system": 5}, {"options": 3}], ids=str
)
def test_what_is_no_text_or_no_mapping_is_refused(wrong: dict[str, Any]):
    model = Llava(engine=Recorder())
    with pytest.raises(UsageProblem, match=r"not a (text|mapping)") as refused:
        model.ask(None, **{"prompt": "Hello", **wrong})
    assert refused.value.hint


def test_without_a_picture_there_is_a_question_still():
    engine = Recorder(sees=False)
    nothing: list[Any] = [None, [], ()]
    for pictures in nothing:
        Llava(engine=engine).ask(pictures, "Hello", system="Be brief.", options={"seed": 1})
        assert [(m.role, m.text, m.pictures) for m in engine.requests[-1].messages] == [
            ("system", "Be brief.", ()),
            ("user", "Hello", ()),
        ]
        assert engine.requests[-1].options == {"seed": 1}
        with pytest.raises(UsageProblem, match="neither a picture nor a question"):
            Llava(engine=engine).ask(pictures, "  ")


@pytest.mark.parametrize("wrong", [7, 3.5, object()])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(UsageProblem, match="is not a picture") as caught:
        Llava(engine=Recorder()).ask(wrong)
    assert caught.value.hint
    with pytest.raises(ImageError, match="is not a picture"):
        Llava(engine=Recorder()).ask([wrong])


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_vision_is_refused_before_a_picture_is_read(mode, tmp_path):
    other = AsyncRecorder(sees=False)
    engine = other if mode.startswith("async") else other.inner
    with pytest.raises(UsageProblem, match="blind"):
        answer(mode, tmp_path / "missing.png", engine=engine)
    assert other.inner.requests == []


@pytest.mark.parametrize("mode", MODES)
def test_what_was_noted_of_a_picture_reaches_the_reporter(mode, tmp_path):
    colours = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    gif, sideways = tmp_path / "three.gif", io.BytesIO()
    colours[0].save(gif, save_all=True, append_images=colours[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    red().save(sideways, "JPEG", exif=exif)
    engine = AsyncRecorder() if mode.startswith("async") else Recorder()
    notes = Notes()
    answer(mode, [red(), gif, sideways.getvalue()], engine=engine, reporter=notes)
    assert notes.notes == [
        f"`{gif}`: first of 3 frames",
        "picture 3: turned by its EXIF orientation",
    ]


def test_a_chat_keeps_its_turns():
    engine = Recorder()
    chat = Llava(engine=engine).chat(system="Be brief.", options={"seed": 1})
    assert str(chat.ask("What is it?", red())) == "answer 1"
    assert [str(chunk) for chunk in chat.stream("And now?")] == ["answer ", "2"]
    last = engine.requests[-1]
    assert [(m.role, m.text, len(m.pictures)) for m in last.messages] == [
        ("system", "Be brief.", 0),
        ("user", "What is it?", 1),
        ("assistant", "answer 1", 0),
        ("user", "And now?", 0),
    ]
    assert last.options == {"seed": 1}
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2


def test_a_question_that_fails_or_is_broken_off_is_not_kept():
    engine = Recorder()
    chat = Llava(engine=engine).chat()
    with pytest.raises(IncompleteAnswer):
        chat.ask("fail")
    stream = chat.stream("Go on")
    next(stream)
    stream.close()
    with pytest.raises(ImageError):
        chat.ask("What?", b"no picture")
    assert chat.turns == []
    assert engine.stopped == 2


def test_an_async_chat_does_the_same():
    async def session() -> None:
        engine = AsyncRecorder()
        async with AsyncLlava(engine=engine) as llava:
            chat = llava.chat(system="Be brief.")
            assert str(await chat.ask("What is it?", red())) == "answer 1"
            with pytest.raises(IncompleteAnswer):
                await chat.ask("fail")
            stream = chat.stream("Go on")
            await anext(stream)
            await stream.aclose()
            assert engine.inner.stopped == 3  # at once, not when the garbage is collected
            assert [str(chunk) async for chunk in chat.stream("And now?")] == ["answer ", "4"]
        assert [turn.text for turn in chat.turns] == [
            "What is it?", "answer 1", "And now?", "answer 4",
        ]  # fmt: skip
        assert engine.inner.closed == 1

    asyncio.run(session())


def test_closing_a_stream_closes_the_engines():
    engine = Recorder()
    with Llava(engine=engine) as llava:
        stream = llava.stream(None, "Hello")
        assert engine.requests == []  # nothing is sent before it is iterated over
        next(stream)
        stream.close()
        assert engine.stopped == 1
    assert engine.closed == 1


def test_closing_an_async_stream_closes_the_engines():
    async def session() -> None:
        engine = AsyncRecorder()
        stream = AsyncLlava(engine=engine).stream(None, "Hello")
        await anext(stream)
        await stream.aclose()
        assert engine.inner.stopped == 1

    asyncio.run(session())


# Failures on the way to a daemon and back


MODELFILE = f"FROM /models/blobs/sha256-{'1' * 64}\nFROM /models/blobs/sha256-{'2' * 64}\n"
SHOWN = {"modelfile": MODELFILE, "template": "x", "capabilities": ["completion", "vision"]}
WORDS = ("A ", "red ", "circle.")
END = {"done": True, "done_reason": "stop", "prompt_eval_count": 78, "eval_count": 3}


def part(text: str, **more: Any) -> bytes:
    reply = {"model": "m", "message": {"role": "assistant", "content": text}, "done": False, **more}
    return json.dumps(reply).encode() + b"\n"


class Handler(BaseHTTPRequestHandler):
    """Says what Ollama says, until the test's `chat` takes over."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a reply in one piece: two small ones wait 40 ms for each other (Nagle)
    chat: Callable[[Handler, Any], None]
    shown: Any = SHOWN
    chats = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self.reply(200, self.shown)
        else:
            type(self).chats += 1
            type(self).chat(self, body)

    def reply(self, status: int, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def daemon(chat: Callable[[Handler, Any], None], shown: Any = SHOWN) -> Iterator[tuple[str, Any]]:
    """Serve `chat` as an Ollama daemon would; yield its address and the handler class."""
    kind = type("Scripted", (Handler,), {"chat": staticmethod(chat), "shown": shown})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", kind
        finally:
            server.shutdown()
            thread.join()


def healthy(handler: Handler, body: Any) -> None:
    if body["stream"]:
        handler.begin()
        for word in WORDS:
            handler.send(part(word))
        handler.send(part("", **END))
        handler.wfile.write(b"0\r\n\r\n")
    else:
        handler.reply(200, part("".join(WORDS), **END))


def says(status: int, words: str) -> Callable[[Handler, Any], None]:
    return lambda handler, _: handler.reply(status, {"error": words})


@pytest.mark.parametrize("mode", MODES)
def test_a_healthy_answer(mode):
    with daemon(healthy) as (host, _):
        got = answer(mode, red(), host=host, model="m")
    assert str(got) == "A red circle."
    assert (got.finish, got.usage, got.engine) == ("stop", Usage(78, 3), "ollama")
    assert len(got.model_digest or "") == 64


FAILURES = [
    (says(404, "model 'm' not found"), ModelNotInstalled, "`m`"),
    (
        says(503, "server busy, please try again.  maximum pending requests exceeded"),
        DaemonBusy,
        "many requests",
    ),
    (
        says(500, "model runner has unexpectedly stopped, this may be due to ..."),
        RunnerCrashed,
        "stopped",
    ),
    (says(500, "llama-server process has terminated: signal: killed"), RunnerCrashed, "killed"),
    (says(500, "timed out waiting for llama runner to start"), ModelLoading, "waiting"),
    (says(500, 'option "num_ctx" must be of type integer'), DaemonError, "num_ctx"),
    (says(403, ""), DaemonError, "refuses"),
    (lambda handler, _: handler.reply(200, b"<html>welcome</html>"), DaemonUnreachable, "not an"),
    (lambda handler, _: handler.reply(200, {"hello": 1}), DaemonUnreachable, "not an Ollama"),
    (lambda handler, _: handler.cut(), DaemonError, "broke off"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("chat", "error", "words"), FAILURES)
def test_a_failure_has_its_type_and_a_hint(mode, chat, error, words):
    with daemon(chat) as (host, _), pytest.raises(LlavaOllamaError, match=words) as caught:
        answer(mode, red(), host=host, model="m", retry_for=0)
    assert type(caught.value) is error
    assert caught.value.hint
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("mode", ["stream", "async stream"])
@pytest.mark.parametrize("how", ["cut", "end", "half a line", "repeats"])
def test_a_stream_without_its_end_is_incomplete(mode, how):
    def chat(handler: Handler, _: Any) -> None:
        handler.begin()
        for word in WORDS[:2]:
            handler.send(part(word))
        if how == "cut":
            handler.cut()
            return
        if how == "half a line":
            handler.send(part(WORDS[2])[:20])
        handler.wfile.write(b"0\r\n\r\n")

    with daemon(chat) as (host, _), pytest.raises(IncompleteAnswer) as caught:
        answer(mode, red(), host=host, model="m")
    assert caught.value.text == "A red "
    assert caught.value.hint


@pytest.mark.parametrize("mode", ["stream", "async stream"])
def test_a_failure_in_the_middle_of_a_stream_has_its_type(mode):
    def chat(handler: Handler, _: Any) -> None:
        handler.begin()
        handler.send(part("A "))
        handler.send(b'{"error": "llama-server process has terminated: signal: killed"}\n')
        handler.wfile.write(b"0\r\n\r\n")

    with daemon(chat) as (host, _), pytest.raises(RunnerCrashed, match="killed"):
        answer(mode, red(), host=host, model="m")


@pytest.mark.parametrize("mode", ["ask", "async ask"])
def test_a_whole_answer_that_is_not_done_is_incomplete(mode):
    # A daemon that cuts off a model which repeats itself answers so.
    def chat(handler: Handler, _: Any) -> None:
        handler.reply(200, part("A A A "))

    with daemon(chat) as (host, _), pytest.raises(IncompleteAnswer) as caught:
        answer(mode, red(), host=host, model="m")
    assert caught.value.text == "A A A "


@pytest.mark.parametrize("mode", MODES)
def test_silence_is_a_timeout(mode):
    done = threading.Event()
    with daemon(lambda *_: done.wait(10)) as (host, _):  # type: ignore[arg-type] # no use for what it returns
        with pytest.raises(DaemonTimeout, match=r"within 0\.2 seconds"):
            answer(mode, red(), host=host, model="m", timeout=0.2)
        done.set()


@pytest.mark.parametrize("mode", MODES)
def test_where_nobody_listens(mode):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: nobody else can take the port
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        for pictures in (red(), None):
            with pytest.raises(DaemonUnreachable, match=host) as caught:
                answer(mode, pictures, host=host, model="m")
            assert "ollama serve" in (caught.value.hint or "")


@pytest.mark.parametrize("mode", MODES)
def test_a_daemon_that_goes_away_between_two_questions(mode):
    async def later(host: str) -> None:
        async with AsyncLlava("m", host=host) as llava:
            await llava.ask(red())
            stop()
            if mode == "async ask":
                await llava.ask(red())
            else:
                _ = [chunk async for chunk in llava.stream(red())]

    def now(host: str) -> None:
        with Llava("m", host=host) as llava:
            llava.ask(red())
            stop()
            _ = llava.ask(red()) if mode == "ask" else list(llava.stream(red()))

    with daemon(healthy) as (host, kind):

        def stop() -> None:
            kind.chat = staticmethod(lambda handler, _: handler.cut())

        with pytest.raises(DaemonError, match="broke off"):
            asyncio.run(later(host)) if mode.startswith("async") else now(host)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_the_daemon_calls_blind_is_sent_nothing(mode):
    with daemon(healthy, {**SHOWN, "capabilities": ["completion"]}) as (host, kind):
        with pytest.raises(UsageProblem, match="`m` does not see pictures") as caught:
            answer(mode, red(), host=host, model="m")
        assert "llava-ollama list" in (caught.value.hint or "")
        assert kind.chats == 0
        assert str(answer(mode, None, "Hello", host=host, model="m")) == "A red circle."


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_option_is_ours_to_refuse(mode):
    with daemon(healthy) as (host, kind):
        for options in ({"temprature": 1}, {"temperature": "warm"}, {"stop": 3}):
            with pytest.raises(UsageProblem):
                answer(mode, red(), host=host, model="m", options=options)
        assert kind.chats == 0


def test_what_is_sent():
    sent: list[Any] = []

    def chat(handler: Handler, body: Any) -> None:
        sent.append(body)
        healthy(handler, body)

    options = {"temperature": 0, "min_p": 0.1, "stop": "x", "num_predict": 5, "seed": 3}
    with daemon(chat) as (host, _), Llava("m", host=host) as llava:
        llava.ask([red(), red()], "  What? ", system=" Be brief. ", options=options)
    (body,) = sent
    assert body["model"] == "m"
    assert body["stream"] is False
    assert body["options"] == {**options, "stop": ["x"]}
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "[img]\n[img]\nWhat?"),
    ]
    assert len(body["messages"][1]["images"]) == 2


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout):
    for make in (Llava, AsyncLlava, Llava.server):
        with pytest.raises(UsageProblem, match="seconds"):
            make("http://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("kind", [Llava, AsyncLlava])
def test_a_closed_client_says_so(kind):
    with daemon(healthy) as (host, _):
        llava = kind("m", host=host)
        if kind is Llava:
            llava.ask(red())
            llava.close()
            llava.close()
            calls = [lambda: llava.ask(red()), lambda: llava.ask(None, "x")]
        else:

            async def used() -> None:
                await llava.ask(red())
                await llava.close()
                await llava.close()

            asyncio.run(used())
            calls = [lambda: asyncio.run(llava.ask(red()))]
        for call in calls:
            with pytest.raises(UsageProblem, match="closed"):
                call()


# The environment


ASK = """
from llava_ollama import Llava, AsyncLlava
from llava_ollama.errors import LlavaOllamaError
from PIL import Image
import asyncio, sys
host = sys.argv[1] if len(sys.argv) > 1 else None
picture = Image.new("RGB", (8, 8), "red")
async def later():
    async with AsyncLlava("m", host=HOST) as llava:
        return [str(await llava.ask(picture)), *[str(c) async for c in llava.stream(picture)]]
try:
    with Llava("m", host=HOST) as llava:
        print(llava.ask(picture), "".join(map(str, llava.stream(picture))))
    print(*asyncio.run(later()))
except LlavaOllamaError as error:
    print(type(error).__name__, error, "HINT", error.hint)
"""
PROXIES = {
    name: value
    for value in ("socks5://127.0.0.1:1",)
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
}


@pytest.mark.parametrize(
    "environment",
    [
        {"OLLAMA_HOST": "localhost:99999"},
        {"OLLAMA_HOST": "http://[::"},
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"},
        {"HTTP_PROXY": "nonsense://x", "SSL_CERT_FILE": "/missing/certificates"},
        {"OLLAMA_HOST": "localhost:99999", **PROXIES},
    ],
)
def test_no_environment_keeps_us_from_a_daemon_here(environment):
    with daemon(healthy) as (host, _):
        done = python(ASK.replace("HOST", repr(host)), **environment)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "A red circle. A red circle.",
        "A red circle. A  red  circle. ",
    ]


def test_a_bad_address_in_the_environment_is_our_error():
    done = python(ASK.replace("HOST", "None"), OLLAMA_HOST="localhost:99999")
    assert done.stderr == ""
    assert "UsageProblem `localhost:99999` in OLLAMA_HOST" in done.stdout
    assert "HINT Write it as" in done.stdout


def test_a_proxy_that_cannot_be_used_is_our_error():
    done = python(ASK.replace("HOST", "'http://ollama.invalid'"), ALL_PROXY="socks5://127.0.0.1:1")
    assert done.stderr == ""
    assert "UsageProblem the proxy in the environment cannot be used" in done.stdout
    assert "NO_PROXY" in done.stdout


def test_a_proxy_is_used_for_a_daemon_elsewhere():
    with daemon(healthy) as (host, _):
        # Our server answers a proxy's request as it answers any other.
        done = python(
            ASK.replace("HOST", "'http://ollama.invalid:1'"), HTTP_PROXY=host, http_proxy=host
        )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(("prompt", "system"), [("\ud800", None), ("what", "\udcff")])
def test_a_text_that_cannot_be_sent_is_refused(prompt, system):
    with pytest.raises(UsageProblem, match="lone surrogate"):
        request_of([], Message("user", prompt), system, None)


def test_a_redirect_is_not_followed():
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.path)
            shown = b'{"capabilities": ["completion"]}'
            redirects = self.path == "/api/chat"
            self.send_response(307 if redirects else 200)
            self.send_header("Location", "/stolen")
            self.send_header("Content-Length", "0" if redirects else str(len(shown)))
            self.end_headers()
            self.wfile.write(b"" if redirects else shown)

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            engine = OllamaEngine("x", f"http://127.0.0.1:{server.server_address[1]}")
            with closing(engine), pytest.raises(DaemonError):
                engine.answer(Request((Message("user", "what"),), {}))
        finally:
            server.shutdown()
            thread.join()
    assert asked[-1] == "/api/chat"
    assert "/stolen" not in asked


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", [["busy"], 5, None], ids=str)
def test_a_refusal_in_words_that_are_not_ollama_s(mode, body):
    replies = {**BARE, "/api/show": SEEING, "/api/chat": (500, body)}
    with stand_in(replies) as host, pytest.raises(DaemonUnreachable, match="is not an Ollama"):
        answer(mode, Image.new("RGB", (9, 9)), model="x", host=host)
