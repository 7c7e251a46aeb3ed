"""`ask` of a prepared small picture, against ollama-python's `chat` with the same bytes.

    python -m tests.bench.bench_ask

Both ask one daemon for the same answer in turn. The daemon's own time is most of both, so the
quotient of single pairs swings by a third; the median of many pairs does not.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from llava_ollama import Llava
from llava_ollama.images import PreparedPicture, prepare
from llava_ollama.tiny.shapes import Shape, draw
from tests.bench import Figure, compare
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.installing import install

VERSION = "0.34.4"
ROUNDS = 400
WARM = 20
SIDE = 112
BAR = 1.05
PROMPT = "Describe this image"
OPTIONS = {"temperature": 0}


def measure(rounds: int = ROUNDS) -> list[Figure]:
    """Return both figures: a picture that `prepare` made, and one that it still has to check."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = RunningDaemon(VERSION, Path(folder), build.ensure(VERSION)).start()
        try:
            name = install(daemon.host, Path(folder), "tiny")
            prepared = _ratio(daemon.host, name, rounds, prepare(_picture(), SIDE))
            raw = _ratio(daemon.host, name, rounds, _picture())
        finally:
            daemon.stop()
    theirs = "ollama-python's `chat`, same bytes"
    return [
        Figure("`ask` of a prepared small picture", theirs, prepared, BAR, rounds),
        Figure("`ask` of the same file, checked first", theirs, raw, None, rounds),
    ]


def main(rounds: int = ROUNDS) -> float:
    """Print the figure and return it."""
    figure, _ = measure(rounds)
    sys.stdout.write(f"ask / ollama-python chat: {figure.ratio:.2f} (median of {rounds})\n")
    return figure.ratio


def _ratio(host: str, name: str, rounds: int, source: bytes | PreparedPicture) -> float:
    import ollama

    # Their prompt gets the newline that ours has, so that both read the same 78 tokens.
    message = {"role": "user", "content": f"[img]\n{PROMPT}", "images": [_picture()]}
    client = ollama.Client(host)
    with Llava(name, host=host) as llava:

        def ours() -> str:
            return str(llava.ask(source, PROMPT, options=OPTIONS))

        def theirs() -> str | None:
            return client.chat(name, [message], options=OPTIONS).message.content

        assert ours() == theirs()
        compare(ours, theirs, rounds=WARM)
        ratio, _ = compare(ours, theirs, rounds=rounds)
    client.close()
    return ratio


def _picture() -> bytes:
    """Return a PNG file that goes out byte for byte."""
    buffer = io.BytesIO()
    draw(Shape("red", "circle", "white"), width=SIDE, height=SIDE).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
