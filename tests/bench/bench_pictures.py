"""Large photos to the first token, against ollama-python sending the file as it is.

    python -m tests.bench.bench_pictures [ROUNDS]

Both ask one daemon about the same JPEG file, which is another one each round, since a daemon keeps
what it made of a picture that it has seen. And what preparing costs, against bare Pillow.
"""

from __future__ import annotations

import io
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llava_ollama import Llava
from llava_ollama.images import Decode, prepare
from tests.bench import Figure, compare
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.installing import install
from tests.photos import jpeg, photo

VERSION = "0.34.4"
SIZES = {"12 MP": (4000, 3000), "48 MP": (8000, 6000)}
ROUNDS = 7
SIDE = 112
BARS: dict[Decode, float] = {"exact": 1 / 1.6, "fast": 1 / 6}
PROMPT = "Describe this image"
OPTIONS = {"temperature": 0, "num_predict": 1}
"""The first token is also the last: a daemon may keep its slot after an answer that is cut off."""


def measure(rounds: int = ROUNDS) -> list[Figure]:
    photos = {size: jpeg(photo(*pixels)) for size, pixels in SIZES.items()}
    return [*_first_tokens(photos, rounds), *_preparing(photos, rounds), _memory(photos["48 MP"])]


def _first_tokens(photos: dict[str, bytes], rounds: int) -> Iterator[Figure]:
    import ollama

    with tempfile.TemporaryDirectory() as folder:
        daemon = RunningDaemon(VERSION, Path(folder), build.ensure(VERSION)).start()
        name = install(daemon.host, Path(folder), "tiny")
        client = ollama.Client(daemon.host)
        try:
            with Llava(name, host=daemon.host) as llava:
                for (size, data), decode in itertools.product(photos.items(), BARS):
                    ratio = _first_token(llava, client, name, data, decode=decode, rounds=rounds)
                    what = f"{size} JPEG to the first token, `{decode}`"
                    theirs = "ollama-python's `chat`, same file"
                    yield Figure(what, theirs, ratio, BARS[decode], rounds)
        finally:
            daemon.stop()
            client.close()
    for size, data in photos.items():
        ratio = len(prepare(data, SIDE).data) / len(data)
        yield Figure(f"{size} JPEG: bytes sent", "the file's", ratio, 0.1, 1)


def _first_token(  # noqa: PLR0913 - a measurement has its parts
    llava: Llava, client: Any, name: str, data: bytes, *, decode: Decode, rounds: int
) -> float:
    fresh = _fresh(data)

    def ours() -> str:
        return llava.ask(next(fresh), PROMPT, options=OPTIONS, decode=decode).text

    def theirs() -> str:
        message = {"role": "user", "content": f"[img]\n{PROMPT}", "images": [next(fresh)]}
        first: str = client.chat(name, [message], options=OPTIONS).message.content
        return first

    ours(), theirs()
    ratio, _ = compare(ours, theirs, rounds=rounds)
    return ratio


def _fresh(data: bytes) -> Iterator[bytes]:
    """Yield the same photo again and again, each time other bytes: by a comment in it."""
    for number in itertools.count():
        yield data[:2] + b"\xff\xfe\0\6%04d" % number + data[2:]


def _preparing(photos: dict[str, bytes], rounds: int) -> Iterator[Figure]:
    for size, data in photos.items():
        ours, theirs = partial(prepare, data, SIDE), partial(bare, data, SIDE)
        ours(), theirs()
        ratio, _ = compare(ours, theirs, rounds=3 * rounds)
        bar = 1.1 if size == "12 MP" else None
        yield Figure(f"`prepare` of a {size} JPEG", "bare Pillow", ratio, bar, 3 * rounds)


def bare(data: bytes, side: int) -> bytes:
    """Take Pillow's own words for the same steps, as one would without this package."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    whole = max(picture.size)
    if picture.width != picture.height:
        square = Image.new("RGB", (whole, whole), (122, 116, 104))
        square.paste(picture, ((whole - picture.width) // 2, (whole - picture.height) // 2))
        picture = square
    file = io.BytesIO()
    picture.resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _memory(data: bytes, rounds: int = 3) -> Figure:
    """Compare the peaks of two processes that do nothing else."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(data)
        file.flush()
        ratio = statistics.median(
            peak("prepare", file.name) / peak("bare", file.name) for _ in range(rounds)
        )
    return Figure("peak memory of preparing a 48 MP JPEG", "bare Pillow's", ratio, 1.3, rounds)


_PEAK = """
import sys
from pathlib import Path
if sys.argv[1] == 'prepare':
    from llava_ollama.images import prepare as work
else:
    from tests.bench.bench_pictures import bare as work
work(Path(sys.argv[2]).read_bytes(), 336)
# Not `resource`: its peak is that of the process that started this one, if that was larger.
print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])
"""


def peak(whose: str, path: str) -> int:
    """Return the most kilobytes that a process held which prepared the picture at `path`."""
    command = [sys.executable, "-c", _PEAK, whose, path]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


if __name__ == "__main__":
    chosen = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    sys.stdout.writelines(figure.row() + "\n" for figure in measure(chosen))
