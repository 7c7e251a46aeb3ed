"""What the tiny model sees through each daemon, and with the published projector, mended or not.

The tables are in the terminal's summary, whatever is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llava_ollama import Llava
from llava_ollama.tiny import shapes
from tests.conftest import COLUMN, start
from tests.drawn import one_shape_pictures
from tests.installing import QUANTS, install, remove
from tests.old_pair import Desk

if TYPE_CHECKING:
    from tests.daemons.running import RunningDaemon

pytestmark = pytest.mark.ollama

ENGINES = ("0.24.0", "0.34.4", "llama.cpp")
PICTURES = {"0.24.0": 24}
"""Pictures per quant, else 100. 0.24.0 takes 0.7 to 4 s for each, whatever the model's size."""
ASKED = {"0.24.0": 12, "0.34.4": 60, "llama.cpp": 60}
"""Pictures per form of the projector."""
# A text model without `tokenizer.ggml.pre` gets no begin-of-text token from Ollama, whose own
# mending knows only Llama-3's real vocabulary; in process the prompt itself begins with it.
# 0.24.0 puts in none of its two, at the start and before the picture.
TOKENS = {"0.24.0": 77, "0.34.4": 77, "llama.cpp": 78}


Row = Callable[[str], None]


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Put a line into the table; `tests/conftest.py` prints it at the end."""
    return partial(record_property, COLUMN)


@dataclass(frozen=True)
class Seen:
    """How many answers named colour and shape, and what they cost in prompt tokens."""

    right: int
    asked: int
    tokens: set[int]

    @property
    def share(self) -> float:
        return self.right / self.asked

    def __str__(self) -> str:
        return f"{self.right} / {self.asked}"


def see(llava: Llava, pictures: int, seed: int) -> Seen:
    right, tokens = 0, set()
    for picture, shape in one_shape_pictures(pictures, seed):
        answer = llava.ask(picture, options={"temperature": 0})
        assert answer.text
        right += shapes.names(shape, answer.text)
        tokens.add(answer.usage.prompt_tokens)
    return Seen(right, pictures, tokens)


@pytest.mark.parametrize("quant", QUANTS)
def test_fresh_pictures_are_seen_right(quant: str, ollama: RunningDaemon, tmp_path: Path, row: Row):
    name = install(ollama.host, tmp_path, f"fresh-{quant}", model=QUANTS[quant])
    with Llava(name, host=ollama.host) as llava:
        seen = see(llava, PICTURES.get(ollama.version, 100), seed=2026)
    remove(ollama.host, name)
    row(f"{quant:<17} Ollama {ollama.version:<10} {seen}")
    assert seen.share >= 0.95
    assert len(seen.tokens) == 1


@pytest.mark.parametrize("quant", QUANTS)
def test_a_chat_is_streamed(quant: str, ollama: RunningDaemon, tmp_path: Path):
    name = install(ollama.host, tmp_path, f"chat-{quant}", model=QUANTS[quant])
    red = shapes.Shape("red", "circle", "white")
    with Llava(name, host=ollama.host) as llava:
        chat = llava.chat(options={"temperature": 0})
        pieces = [chunk.text for chunk in chat.stream("Describe this image", shapes.draw(red))]
        assert "".join(pieces) == shapes.caption(red)
        assert len(pieces) > 1
        assert chat.ask("What colour is it?").text == "Red."
    remove(ollama.host, name)


# The published form of the pair, and the same mended


@pytest.fixture(scope="module", params=ENGINES)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RunningDaemon | None]]:
    """Yield an engine's name, and its daemon where it has one."""
    if request.param == "llama.cpp":
        yield request.param, None
        return
    daemon = start(request.param, tmp_path_factory.mktemp("forms"))
    yield request.param, daemon
    daemon.stop()


@contextmanager
def loaded(daemon: RunningDaemon | None, desk: Desk, *, mend: bool) -> Iterator[Llava]:
    """Yield a client of the published pair, which is installed, or runs in this process."""
    if daemon is None:
        with Llava.embedded("old", mend=mend) as llava:
            yield llava
        return
    desk.call("install", "old", *(["--mend"] if mend else []), host=daemon.host)
    name = "old-int4-mended" if mend else "old-int4"
    with Llava(name, host=daemon.host) as llava:
        yield llava
    remove(daemon.host, name)


@pytest.mark.parametrize("mend", [False, True], ids=["as published", "mended"])
def test_mending_brings_the_whole_vision_tower(
    place: tuple[str, RunningDaemon | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: Row,
    *,
    mend: bool,
):
    """Through the program's own ways: `install --mend`, and `embedded(mend=True)`."""
    engine, daemon = place
    desk = Desk.set_up(tmp_path)
    monkeypatch.setenv("LLAVA_OLLAMA_CATALOG", str(desk.catalog))
    with loaded(daemon, desk, mend=mend) as llava:
        seen = see(llava, ASKED[engine], seed=7)
    where = engine if daemon is None else f"Ollama {engine}"
    row(f"{'mended' if mend else 'as published':<17} {where:<17} {seen}")
    # Where a block too few is run the tiny model was taught to see nothing.
    assert seen.share >= 0.95 if mend else seen.share < 0.05
    assert seen.tokens == {TOKENS[engine]}
