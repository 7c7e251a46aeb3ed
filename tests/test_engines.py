"""One conformance suite for everybody who answers: both daemons, llama.cpp here, llama-server.

Each is met plain and for asyncio. What only one of them does is at the end of the file.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import gguf
import pytest

from llava_ollama import AsyncLlava, Llava, modelfile
from llava_ollama.daemon import Daemon
from llava_ollama.engine.interface import AsyncEngine, Message, Request
from llava_ollama.engine.llamacpp import LlamaCppEngine
from llava_ollama.errors import (
    DaemonError,
    DaemonUnreachable,
    ImageError,
    IncompleteAnswer,
    ModelNotInstalled,
    RunnerCrashed,
    UsageProblem,
)
from llava_ollama.images import prepare
from llava_ollama.tiny.shapes import Shape, draw
from tests.asking import SENTENCE, WILD, ask, circle, long
from tests.conftest import start
from tests.daemons.running import RunningDaemon
from tests.drawn import one_shape_pictures
from tests.installing import MODEL, ONE_THREAD, PROJECTOR, remove
from tests.modes import MODES, answer
from tests.places import PLACES, SEEN, Asked, Place, Plain, llama_server, opened
from tests.published import rewrite

RED = draw(Shape("red", "circle", "white"))
ROOT = Path(__file__).parents[1]


# What holds everywhere


def test_a_red_circle(engine: Asked, place: Place):
    got = engine.answer(ask())
    assert got.text == SENTENCE
    assert got.finish == "stop"
    assert got.engine == ("llama.cpp" if place.version.startswith("llama") else "ollama")
    assert (got.model_digest is None) == place.version.startswith("llama")
    assert got.usage.completion_tokens == 9
    assert 0 <= got.times.load < got.times.total
    assert 0 < got.times.completion < got.times.total
    assert engine.image_size() == (336 if place.version == "llama-server" else 112)


def test_prompt_tokens_prove_the_prompt(engine: Asked, place: Place):
    """One less is a missing begin-of-text token, one more a doubled one."""
    for _ in range(2):  # also where the prompt is cached
        assert engine.answer(ask()).usage.prompt_tokens == place.tokens


def test_a_stream_equals_the_answer(engine: Asked):
    chunks = engine.chunks(ask())
    whole = engine.answer(ask())
    assert len(chunks) > 5
    assert "".join(map(str, chunks)) == whole.text == SENTENCE
    assert [chunk.answer is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    last = chunks[-1].answer
    assert last is not None
    assert (last.text, last.finish, last.usage) == (whole.text, whole.finish, whole.usage)
    assert last.model_digest == whole.model_digest


def test_several_pictures(engine: Asked, place: Place):
    got = engine.answer(ask(circle(), circle((30, 60, 220))))
    assert got.usage.prompt_tokens == place.tokens + SEEN + 1 + place.stray
    assert "circle" in got.text


@pytest.mark.parametrize("pictures", [(1, 0), (0, 1), (3, 0), (2, 1)])
def test_pictures_add_their_tokens_and_a_newline(pictures, engine: Asked, place: Place):
    """Whatever the turn, and however many: nothing is left out, doubled or put elsewhere."""

    def counted(first: int, second: int) -> int:
        turns = (
            Message("system", "You describe pictures."),
            Message("user", "Describe this image", (circle(),) * first),
            Message("assistant", SENTENCE),
            Message("user", "What colour is it?", (circle(),) * second),
        )
        request = Request(turns, {"temperature": 0, "num_predict": 1})
        return engine.answer(request).usage.prompt_tokens

    newline = 1
    assert counted(*pictures) - counted(0, 0) == sum(pictures) * (SEEN + newline + place.stray)


def test_a_picture_of_an_earlier_turn_is_still_seen(engine: Asked):
    turns = (
        Message("user", "Describe this image", (circle(),)),
        Message("assistant", SENTENCE),
        Message("user", "What colour is it?"),
    )
    assert "red" in engine.answer(Request(turns, {"temperature": 0})).text.lower()


def test_a_system_prompt_is_part_of_the_prompt(engine: Asked, place: Place):
    got = engine.answer(ask(system="You describe pictures."))
    assert got.text == SENTENCE
    assert got.usage.prompt_tokens > place.tokens + 5


def test_without_a_picture(engine: Asked):
    request = Request((Message("user", "Describe this image"),), {"temperature": 0})
    assert engine.answer(request).text == "I see no picture."


def test_stop(engine: Asked):
    assert engine.answer(ask(stop=" on")).text == "A red circle"
    assert engine.answer(ask(stop=["xyz", " white"])).text == "A red circle on a"
    whole = engine.answer(ask(stop=["xyz"]))
    assert (whole.text, whole.finish) == (SENTENCE, "stop")


def test_num_predict_is_a_limit(engine: Asked):
    got = engine.answer(ask(num_predict=2))
    assert (got.text, got.finish, got.usage.completion_tokens) == ("A red", "length", 2)
    last = engine.chunks(ask(num_predict=2))[-1].answer
    assert last is not None
    assert last.finish == "length"


def test_a_seed_repeats_an_answer(engine: Asked):
    options = {**WILD, "temperature": 2.0, "num_predict": 20}
    first, again, other = (engine.answer(ask(**options, seed=s)).text for s in (1, 1, 2))
    assert first == again != other


def test_temperature_0_repeats_an_answer(engine: Asked):
    """Also when another picture was asked about in between, and the prompt is no longer cached."""
    colours = ((220, 30, 30), (30, 60, 220))
    first = [engine.answer(ask(circle(colour))).text for colour in colours]
    assert len(set(first)) == 2
    assert [engine.answer(ask(circle(colour))).text for colour in colours] == first


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def test_a_schema_holds_the_form_of_an_answer(engine: Asked):
    """Not its content: the tiny model knows no JSON, so the grammar alone writes it."""
    request = dataclasses.replace(ask(num_predict=500), schema=SCHEMA)
    for got in (engine.answer(request), engine.chunks(request)[-1].answer):
        assert got is not None
        assert got.finish == "stop"
        document = json.loads(got.text)
        assert document.keys() == {"colour", "count"}
        assert document["colour"] in {"red", "blue"}
    assert engine.answer(ask()).text == SENTENCE


def test_a_daemon_cuts_off_a_model_that_repeats_itself(engine: Asked, place: Place):
    """After 30 equal tokens on 0.24.0, 100 on 0.34.4: the one just ends, the other says so."""
    same = {"type": "string", "pattern": "^z{400}$"}
    request = dataclasses.replace(ask(num_predict=900), schema=same)
    if place.version.startswith("llama"):
        assert engine.answer(request).text == f'"{"z" * 400}"'
        return
    with pytest.raises(IncompleteAnswer) as caught:
        engine.answer(request)
    assert caught.value.hint
    with pytest.raises(IncompleteAnswer) as caught:
        engine.chunks(request)
    assert caught.value.text.startswith('"zzzzzzzz')


def test_a_schema_that_an_engine_cannot_read(engine: Asked, place: Place):
    request = dataclasses.replace(ask(), schema={"type": "strin"})
    if place.version == "llama.cpp":
        # Its llguidance drops the schema, silently: `extract` checks the schema before, and the
        # answer after.
        assert engine.answer(request).text == SENTENCE
        return
    with pytest.raises(UsageProblem, match="chema") as caught:
        engine.answer(request)
    assert caught.value.hint
    with pytest.raises(UsageProblem, match="chema"):
        engine.chunks(request)


def test_a_wrong_option_is_refused(engine: Asked):
    for wrong in ({"temprature": 1}, {"temperature": "warm"}):
        with pytest.raises(UsageProblem):
            engine.answer(ask(**wrong))
        with pytest.raises(UsageProblem):
            engine.chunks(ask(**wrong))


def test_white_space_around_a_prompt_does_not_count(engine: Asked, place: Place):
    request = Request(
        (Message("user", "\n Describe this image \n", (circle(),)),), {"temperature": 0}
    )
    assert engine.answer(request).usage.prompt_tokens == place.tokens


def test_what_is_no_picture_costs_one_answer_only(engine: Asked, place: Place):
    broken = dataclasses.replace(circle(), data=b"no picture")
    # On 0.24.0 the runner dies of it, which is why pictures are decoded here first.
    error = RunnerCrashed if place.version == "0.24.0" else ImageError
    with pytest.raises(error) as caught:
        engine.answer(ask(broken))
    assert caught.value.hint
    with pytest.raises(error):
        engine.chunks(ask(broken))
    assert engine.answer(ask()).text == SENTENCE


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_closed_engine_says_so(kind, place: Place):
    with ExitStack() as opened:
        engine = place.asked(kind, opened)
        assert engine.answer(ask()).text == SENTENCE
        engine.close()
        with pytest.raises(UsageProblem, match="closed"):
            engine.answer(ask())
        with pytest.raises(UsageProblem, match="closed"):
            engine.chunks(ask())
        with pytest.raises(UsageProblem, match="closed"):
            engine.image_size()


def test_a_chat_sees_the_picture_of_its_first_turn(place: Place):
    with Llava(engine=place.plain(*place.arguments, **place.keywords)) as llava:
        chat = llava.chat(system="You describe pictures.", options={"temperature": 0})
        first = chat.ask("Describe this image", circle())
        second = list(chat.stream("What colour is it?"))
        assert str(first) == SENTENCE
        assert "".join(map(str, second)) == "Red."
        assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2

    async def session() -> list[str]:
        async with AsyncLlava(engine=place.other(*place.arguments, **place.keywords)) as llava:
            chat = llava.chat(system="You describe pictures.", options={"temperature": 0})
            first = await chat.ask("Describe this image", circle())
            second = [str(chunk) async for chunk in chat.stream("What colour is it?")]
            return [str(first), "".join(second)]

    assert asyncio.run(session()) == [SENTENCE, "Red."]


def test_many_may_ask_at_once(place: Place):
    async def session() -> list[str]:
        engine = place.other(*place.arguments, **place.keywords)
        answers = await asyncio.gather(*(engine.answer(ask()) for _ in range(8)))
        await engine.close()
        return [str(a) for a in answers]

    assert asyncio.run(session()) == [SENTENCE] * 8


# What stops the work. The daemons', which may be left with a slot taken, are met further below.

ONLY_SLOT = pytest.mark.parametrize(
    "place", [p for p in PLACES if str(p.values[0]).startswith("llama")], indirect=True
)


@pytest.fixture(scope="module")
def uncut(place: Place) -> float:
    """Seconds that the answer to `long` takes when nobody stops it."""
    with ExitStack() as opened:
        whole = place.asked("plain", opened).answer(long())
    assert whole.usage.completion_tokens > 500
    return whole.times.total


async def until_free(engine: AsyncEngine) -> float:
    """Ask, which waits for the only slot; return how many seconds that took."""
    begun = time.perf_counter()
    assert (await engine.answer(ask())).text == SENTENCE
    return time.perf_counter() - begun


@ONLY_SLOT
def test_closing_a_stream_frees_the_slot(place: Place, uncut: float):
    with ExitStack() as opened:
        asked = place.asked("plain", opened)
        assert isinstance(asked, Plain)
        stream = asked.engine.stream(long())
        next(stream)
        stream.close()
        begun = time.perf_counter()
        assert asked.answer(ask()).text == SENTENCE
        assert time.perf_counter() - begun < uncut / 2


@ONLY_SLOT
def test_closing_an_async_stream_frees_the_slot(place: Place, uncut: float):
    async def session() -> None:
        engine = place.other(*place.arguments, **place.keywords)
        async with aclosing(engine.stream(long())) as stream:
            await anext(stream)
        assert await until_free(engine) < uncut / 2
        await engine.close()

    asyncio.run(session())


@ONLY_SLOT
def test_cancelling_a_task_frees_the_slot(place: Place, uncut: float):
    async def session() -> None:
        engine = place.other(*place.arguments, **place.keywords)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.answer(long()), uncut / 8)
        assert await until_free(engine) < uncut / 2
        await engine.close()

    asyncio.run(session())


INTERRUPTED_SERVER = """
import sys
from llava_ollama.engine.llamacpp import LlamaCppEngine
from tests.asking import long
for chunk in LlamaCppEngine(sys.argv[1], api_key=sys.argv[2]).stream(long()):
    print(chunk.text, flush=True)
"""


@ONLY_SLOT
def test_ctrl_c_frees_the_slot(place: Place, uncut: float):
    with ExitStack() as opened:
        asked = place.asked("plain", opened)
        assert isinstance(asked, Plain)
        assert isinstance(asked.engine, LlamaCppEngine)
        engine = asked.engine
        command = [sys.executable, "-c", INTERRUPTED_SERVER, engine.url, engine.api_key or ""]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as asking:
            assert asking.stdout is not None
            asking.stdout.readline()
            asking.send_signal(signal.SIGINT)
            _, talk = asking.communicate(timeout=30)
        assert b"KeyboardInterrupt" in talk
        begun = time.perf_counter()
        assert engine.answer(ask()).text == SENTENCE
        assert time.perf_counter() - begun < uncut / 2


# What only an installed model can do


@pytest.fixture(scope="module")
def endless(ollama: RunningDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tiny model without its end of turn: it talks until it is stopped."""
    tokens = gguf.GGUFReader(MODEL).fields["tokenizer.ggml.tokens"].contents()
    changes = {
        "tokenizer.ggml.tokens": [t.replace("<|eot_id|>", "<|never|>") for t in tokens],
        "tokenizer.ggml.eot_token_id": None,
        "tokenizer.ggml.eos_token_id": tokens.index("<|end_of_text|>"),
    }
    model = rewrite(MODEL, tmp_path_factory.mktemp("endless") / "model.gguf", changes)
    register(ollama.host, "endless", {"model.gguf": model, "projector.gguf": PROJECTOR})
    yield "endless"
    remove(ollama.host, "endless")


def register(host: str, name: str, files: dict[str, Path]) -> None:
    """Register files as they are: the installer would refuse these."""
    daemon = Daemon(host)
    digests = {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}
    for key, path in files.items():
        if not daemon.has_blob(digests[key]):
            daemon.upload(digests[key], path.stat().st_size, iter([path.read_bytes()]))
    template = modelfile.chat_template()
    for _ in daemon.create(
        name, files=digests, template=template, system="", parameters=ONE_THREAD
    ):
        pass
    daemon.close()


LONG: dict[str, Any] = {"temperature": 0, "num_predict": 3000}


def runners(daemon: RunningDaemon) -> list[int]:
    """Return the processes that the daemon runs its models in."""
    assert daemon.process is not None
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == daemon.process.pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def stopping(ollama: RunningDaemon, endless: str) -> Iterator[RunningDaemon]:
    """The daemon with the endless model loaded; it gets a new runner after the test.

    Seen on 0.34.4: about one cancelled answer in fifty leaves the model's slot taken for good.
    """
    with Llava(endless, host=ollama.host) as llava:
        llava.ask(RED, options={"num_predict": 1})
    yield ollama
    for runner in runners(ollama):
        os.kill(runner, signal.SIGKILL)


def seconds_until_idle(daemon: RunningDaemon) -> float:
    """Wait until the daemon's runners use no processor time; return how long they still did."""
    begun = last = time.perf_counter()
    used = -1
    while time.perf_counter() - last < 0.3:
        now = sum(ticks(runner) for runner in runners(daemon))
        if now != used:
            used, last = now, time.perf_counter()
        time.sleep(0.02)
    return last - begun


def ticks(process: int) -> int:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:  # it has ended
        return 0
    return sum(map(int, stat.rpartition(")")[2].split()[11:13]))


@pytest.fixture(scope="module")
def whole(ollama: RunningDaemon, endless: str) -> float:
    """Seconds that an answer of `LONG` takes when nobody stops it."""
    with Llava(endless, host=ollama.host) as llava:
        llava.ask(RED, options={"num_predict": 1})
        return llava.ask(RED, options=LONG).times.total


@pytest.mark.ollama
def test_closing_a_stream_stops_the_daemons_work(stopping, endless, whole):
    with Llava(endless, host=stopping.host) as llava:
        stream = llava.stream(RED, options=LONG)
        next(stream)
        stream.close()
    assert seconds_until_idle(stopping) < whole / 2


@pytest.mark.ollama
def test_closing_an_async_stream_stops_the_daemons_work(stopping, endless, whole):
    async def session() -> None:
        async with AsyncLlava(endless, host=stopping.host) as llava:
            async with aclosing(llava.stream(RED, options=LONG)) as stream:
                await anext(stream)
            waited = await asyncio.to_thread(seconds_until_idle, stopping)
            assert waited < whole / 2

    asyncio.run(session())


@pytest.mark.ollama
def test_cancelling_a_task_stops_the_daemons_work(stopping, endless, whole):
    async def session() -> None:
        async with AsyncLlava(endless, host=stopping.host) as llava:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(llava.ask(RED, options=LONG), whole / 8)
            waited = await asyncio.to_thread(seconds_until_idle, stopping)
            assert waited < whole / 2

    asyncio.run(session())


INTERRUPTED = """
import sys
from llava_ollama import Llava
from llava_ollama.tiny.shapes import Shape, draw
llava, red = Llava(sys.argv[2], host=sys.argv[1]), draw(Shape("red", "circle", "white"))
for chunk in llava.stream(red, options={"temperature": 0, "num_predict": 3000}):
    print(chunk.text, flush=True)
"""


@pytest.mark.ollama
def test_ctrl_c_stops_the_daemons_work(stopping, endless, whole):
    command = [sys.executable, "-c", INTERRUPTED, stopping.host, endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        asking.send_signal(signal.SIGINT)
        _, talk = asking.communicate(timeout=30)
    assert b"KeyboardInterrupt" in talk
    assert seconds_until_idle(stopping) < whole / 2


@pytest.mark.ollama
@pytest.mark.parametrize("mode", MODES)
def test_a_runner_that_dies_while_it_answers(mode, stopping, endless):
    def kill() -> None:
        for runner in runners(stopping):
            os.kill(runner, signal.SIGKILL)

    timer = threading.Timer(0.5, kill)
    timer.start()
    with pytest.raises((RunnerCrashed, IncompleteAnswer)) as caught:
        answer(mode, RED, host=stopping.host, model=endless, options=LONG)
    timer.join()
    assert caught.value.hint
    if isinstance(caught.value, IncompleteAnswer):
        assert caught.value.text.startswith(SENTENCE)


class Cutting:
    """Stands before a daemon and breaks its answers off after `limit` bytes."""

    def __init__(self, port: int, limit: int) -> None:
        self._there, self._limit = ("127.0.0.1", port), limit
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._carry, args=(here,), daemon=True).start()

    def _carry(self, here: socket.socket) -> None:
        with here, socket.create_connection(self._there) as there:
            threading.Thread(target=self._forward, args=(here, there), daemon=True).start()
            left = self._limit
            while left > 0 and (data := there.recv(min(left, 65536))):
                here.sendall(data)
                left -= len(data)
            for end in (here, there):
                end.shutdown(socket.SHUT_RDWR)

    def _forward(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(65536):
                there.sendall(data)
        except OSError:  # cut
            pass


@pytest.mark.ollama
@pytest.mark.parametrize("mode", ["stream", "async stream"])
def test_a_connection_that_is_cut_in_the_middle_of_an_answer(mode, stopping, endless, whole):
    proxy = Cutting(stopping.port, 20_000)
    with pytest.raises(IncompleteAnswer) as caught:
        answer(mode, RED, host=proxy.host, model=endless, options=LONG)
    proxy.close()
    assert caught.value.text.startswith(SENTENCE)
    assert seconds_until_idle(stopping) < whole / 2


@pytest.mark.ollama
@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_is_not_installed(mode, ollama):
    for pictures in (RED, None):
        with pytest.raises(ModelNotInstalled, match="`nothing-here`") as caught:
            answer(mode, pictures, host=ollama.host, model="nothing-here")
        assert "llava-ollama list" in (caught.value.hint or "")


@pytest.mark.ollama
def test_a_text_model_is_sent_no_picture(ollama):
    register(ollama.host, "words-only", {"model.gguf": MODEL})
    before = ollama.log().count('"/api/chat"')
    for mode in MODES:
        with pytest.raises(UsageProblem, match="`words-only` does not see pictures"):
            answer(mode, RED, host=ollama.host, model="words-only")
    assert ollama.log().count('"/api/chat"') == before
    assert str(answer("ask", None, host=ollama.host, model="words-only"))
    remove(ollama.host, "words-only")


@pytest.mark.ollama
@pytest.mark.parametrize("mode", MODES)
def test_a_llama_server_asked_as_a_daemon_and_the_reverse(mode, ollama, tmp_path):
    with llama_server(tmp_path) as url, pytest.raises(DaemonError):
        answer(mode, RED, host=url, model="tiny")
    with Llava.server(ollama.host) as llava, pytest.raises(DaemonUnreachable):
        llava.ask(RED)


ALIKE = 200


@pytest.mark.ollama
def test_two_engines_say_the_same(tmp_path: Path):
    """Ollama 0.34 and llama.cpp here are builds of one engine, and their requests mean the same."""
    drawn = [prepare(picture, 112) for picture, _ in one_shape_pictures(ALIKE, seed=34)]
    said: dict[str, list[str]] = {}
    for version in ("0.34.4", "llama.cpp"):
        (tmp_path / version).mkdir()
        with opened(version, tmp_path / version, start) as place, ExitStack() as stack:
            engine = place.asked("plain", stack)
            said[version] = [engine.answer(ask(picture)).text for picture in drawn]
    pairs = list(zip(*said.values(), strict=True))
    assert sum(one == other for one, other in pairs) >= 0.99 * ALIKE
    assert len({one for one, _ in pairs}) > ALIKE / 8, "they are not all told the same"
