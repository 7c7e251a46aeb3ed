"""The pytest plugin: how soon the first answer is there, how fast others are, what pytest pays."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from llava_ollama import Llava
from llava_ollama.images import PreparedPicture, prepare
from llava_ollama.testing import servers, shape_picture
from llava_ollama.tiny.shapes import BACKGROUNDS, COLOURS, SHAPES
from tests.bench import Figure, compare
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.installing import install

VERSION = "0.34.4"
ROUNDS = 15
CALLERS = (1, 4)
OPTIONS = {"temperature": 0}

_FIRST = """
from pathlib import Path
from llava_ollama import Llava
from llava_ollama.testing import servers, shape_picture
picture = shape_picture()
with Llava(engine=servers.start(Path())) as llava:
    assert str(llava.ask(picture.data, options={"temperature": 0})) == picture.sentence
    took = time.perf_counter() - begun
"""
_IMPORT = "import ollama\ntook = time.perf_counter() - begun\n"


def measure(rounds: int = ROUNDS) -> list[Figure]:
    return [_first_answer(rounds), *_pictures(rounds), _collecting(rounds)]


def _first_answer(rounds: int) -> Figure:
    ratios = [_inside(_FIRST) / _inside(_IMPORT) for _ in range(rounds)]
    what = "import to the first answer in process"
    return Figure(what, "`import ollama` alone", median(ratios), 1.5, rounds)


def _inside(code: str) -> float:
    """Return the seconds that `code` takes in a new interpreter, whose own start is not counted."""
    timed = f"import time\nbegun = time.perf_counter()\n{code}\nprint(took)"
    return float(subprocess.check_output([sys.executable, "-c", timed]))


def _pictures(rounds: int) -> list[Figure]:
    """Return the time for all 96 pictures, each shown once a round, by callers at once."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = RunningDaemon(VERSION, Path(folder), build.ensure(VERSION)).start()
        try:
            name = install(daemon.host, Path(folder), "tiny")
            with (
                Llava(engine=servers.start(Path(folder))) as here,
                Llava(name, host=daemon.host) as there,
            ):
                return [_figure(here, there, callers, rounds) for callers in CALLERS]
        finally:
            daemon.stop()


def _figure(here: Llava, there: Llava, callers: int, rounds: int) -> Figure:
    vision = here.vision()

    def asked(llava: Llava, pictures: Sequence[PreparedPicture]) -> list[str]:
        with ThreadPoolExecutor(callers) as pool:
            return list(pool.map(lambda one: str(llava.ask(one, options=OPTIONS)), pictures))

    def ratio(seed: int) -> float:
        # New places, sizes and tints each time: neither side may know a picture from before.
        words = [(c, s, b) for c in COLOURS for s in SHAPES for b in BACKGROUNDS]
        drawn = [prepare(shape_picture(*each, seed=seed).data, vision) for each in words]
        return compare(partial(asked, here, drawn), partial(asked, there, drawn), rounds=1)[0]

    ratios = [ratio(1000 * callers + seed) for seed in range(rounds)]
    what = f"96 different pictures in process, {callers} at once"
    return Figure(what, f"the same through Ollama {VERSION}", median(ratios), 1.0, rounds)


def _collecting(rounds: int) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pytest.ini").write_text("[pytest]\n")
        ours: Callable[[], object] = partial(_collect, folder)
        theirs: Callable[[], object] = partial(_collect, folder, "-p", "no:llava-ollama")
        ours()  # once unmeasured: bytecode is written
        ratio, _ = compare(ours, theirs, rounds=rounds)
    what = "`pytest --collect-only` of an empty project, with the plugin"
    return Figure(what, "without it", ratio, 1.1, rounds)


def _collect(folder: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    subprocess.run(command, cwd=folder, check=False, stdout=subprocess.DEVNULL)
