"""A gallery of 100,000 pictures from `file://`: until it is seen, and until all of it is searched.

    python -m tests.bench.bench_gallery [ROUNDS]

Each round opens the page anew in a Chromium without a window and without a graphics card.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from llava_ollama.batch.thumbnails import Thumbnails
from llava_ollama.gallery import build
from tests import chromium
from tests.bench import Figure
from tests.chromium import Chromium
from tests.galleries import jpeg, many

ROUNDS = 7
PICTURES = 100_000
BAR = 1000.0
"""Milliseconds in which people feel that nothing keeps them waiting."""
_SEEN = "document.querySelectorAll('.thumb img').length > 10"
_ALL = "document.getElementById('count').textContent === '100,000 pictures'"
_FOUND = "document.getElementById('count').textContent.startsWith('1 of')"


def measure(rounds: int = ROUNDS) -> list[Figure]:
    program = chromium.find()
    assert program is not None, "no Chromium on this machine"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        page = _written(folder)
        wrote = time.perf_counter() - begun
        with Chromium(program, folder / "profile") as browser:
            browser.size(1280, 860)
            times = [_opened(browser, page) for _ in range(rounds + 1)][1:]
            browser.key("Escape")
            browser.wait(_ALL)
            tiles = browser.run("document.querySelectorAll('.tile').length")
    seen, loaded, found = (statistics.median(column) for column in zip(*times, strict=True))
    what = "gallery of 100,000 pictures from `file://`"
    return [
        Figure(f"{what}: small pictures and answers are seen", "-", seen, BAR, rounds, "ms"),
        Figure(f"{what}: all answers are loaded", "-", loaded, None, rounds, "ms"),
        Figure(f"{what}: a search of all answers", "-", found, None, rounds, "ms"),
        Figure(f"{what}: tiles in the page", "-", tiles, 200, 1, "tiles"),
        Figure(f"{what}: written", "-", wrote, None, 1, "s"),
    ]


def _written(folder: Path) -> Path:
    with Thumbnails(folder) as small:
        for number in range(1, 1001):
            small.put(f"{number:064x}", jpeg("teal"))
        rows = (replace(one, sha256=f"{one.item % 1000 + 1:064x}") for one in many(PICTURES))
        return build(rows, small, folder / "gallery").page


def _opened(browser: Chromium, page: Path) -> tuple[float, float, float]:
    """Return milliseconds from the call: until it is seen, all is loaded; and for a search."""
    begun = browser.open(page) * 1000
    now = "(Date.now())"
    browser.wait(_SEEN)
    seen = browser.run(now) - begun
    browser.wait(_ALL)
    loaded = browser.run(now) - begun
    browser.run("document.getElementById('search').focus()")
    before = browser.run(now)
    browser.type("99999")
    browser.wait(_FOUND)
    return seen, loaded, browser.run(now) - before


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:2]]
    sys.stdout.write("\n".join(figure.row() for figure in measure(*given)) + "\n")
