"""Bytes into a daemon that has none of them, by every way, against its own `ollama create`.

    python -m tests.bench.bench_transfer [BYTES]

The larger the file, the better a link looks.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from llava_ollama import modelfile, resources
from llava_ollama.catalog import LLAMA3_PARAMETERS
from llava_ollama.daemon import Daemon
from llava_ollama.errors import ModelNotInstalled
from llava_ollama.ledger import Ledger
from llava_ollama.progress import SILENT
from llava_ollama.store import Store
from llava_ollama.transfer import Blob, Link, Upload
from tests.bench import Figure, seconds
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.large import padded

ROUNDS = {1_200_000_000: 5, 4_900_000_000: 3}
"""By the model's size in bytes; the second is that of the real int4 file."""
FIXED = 0.2
"""Seconds that registering may take, whatever the size."""
VERSION = "0.34.4"
REWRITING = "0.34.0"
"""It rewrites at `create` whatever was linked, so only the first copy is spared."""
BARS = {"link, known": 1 / 20, "link, hashed": 1 / 2.2, "upload, known": 1.1, "upload": 1.5}


def measure(sizes: Collection[int] = ROUNDS) -> list[Figure]:
    figures = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            figures += _measure(Path(folder), size, ROUNDS.get(size, 3))
    with tempfile.TemporaryDirectory() as folder:
        figures.append(_rewriting(Path(folder), min(sizes)))
    return figures


def _rewriting(folder: Path, size: int, rounds: int = 3) -> Figure:
    """Return how a link does where `create` writes every byte anew."""
    blobs = _files(folder, size)
    running = RunningDaemon(REWRITING, folder / "daemon", build.ensure(REWRITING)).start()
    try:
        ours = _ours(running, folder, "link, hashed", blobs)
        ratio = _ratio(running, ours, _theirs(running, folder), rounds=rounds)
    finally:
        running.stop()
    name = f"{size / 1e9:.1f} GB: link, hashed, and registering"
    return Figure(name, f"`ollama create` of {REWRITING}", ratio, 1 / 2, rounds)


def _measure(folder: Path, size: int, rounds: int) -> list[Figure]:
    blobs = _files(folder, size)
    running = RunningDaemon(VERSION, folder / "daemon", build.ensure(VERSION)).start()
    try:
        theirs = _theirs(running, folder)
        figures = []
        for what, bar in BARS.items():
            ratio = _ratio(running, _ours(running, folder, what, blobs), theirs, rounds=rounds)
            name = f"{size / 1e9:.1f} GB: {what}, and registering"
            figures.append(Figure(name, f"`ollama create` of {VERSION}", ratio, bar, rounds))
        hashing = _ours(running, folder, "link, hashed", blobs)
        ratio = _ratio(
            running, hashing, partial(_hashlib, folder / "model.gguf"), rounds=rounds, fixed=FIXED
        )
        name = f"{size / 1e9:.1f} GB: link, hashed, and registering, less {FIXED} s"
        figures.append(Figure(name, "hashlib alone", ratio, 1.1, rounds))
    finally:
        running.stop()
    return figures


def _ratio(
    running: RunningDaemon,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    fixed: float = 0.0,
) -> float:
    """Return the median ratio; what the one before left is removed outside the measurement."""

    def timed(work: Callable[[], object]) -> float:
        _remove(running)
        return seconds(work)

    timed(ours), timed(theirs)
    return statistics.median((timed(ours) - fixed) / timed(theirs) for _ in range(rounds))


def _files(folder: Path, size: int) -> list[Blob]:
    """Make a pair with a model of `size` bytes."""
    model = padded(resources.bundled("tiny-llava-int4.gguf"), folder / "model.gguf", size)
    shutil.copy(resources.bundled("tiny-llava-mmproj-f16.gguf"), folder / "mmproj.gguf")
    return [_blob(model), _blob(folder / "mmproj.gguf")]


def _blob(path: Path) -> Blob:
    return Blob(path, _hashlib(path), path.stat().st_size)


def _hashlib(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ours(running: RunningDaemon, folder: Path, what: str, blobs: list[Blob]) -> Callable[[], None]:
    def install() -> None:
        daemon, known = Daemon(running.host), what.endswith("known")
        ledger = Ledger(folder / "ledger.sqlite3", rehash=not known)
        transfer = (
            Link(daemon, Store(running.models), ledger)
            if what.startswith("link")
            else Upload(daemon, ledger)
        )
        for blob in blobs:
            transfer.bring(blob, SILENT)
        names = ("model.gguf", "projector.gguf")
        for _ in daemon.create(
            "bench",
            files=dict(zip(names, (b.sha256 for b in blobs), strict=True)),
            template=modelfile.chat_template(),
            system="",
            parameters=LLAMA3_PARAMETERS,
        ):
            pass
        transfer.settle(blobs, SILENT, registered=True)
        daemon.close()

    return install


def _theirs(running: RunningDaemon, folder: Path) -> Callable[[], None]:
    text = modelfile.render(
        modelfile.Modelfile(
            "./model.gguf", "./mmproj.gguf", modelfile.chat_template(), "", LLAMA3_PARAMETERS
        )
    )
    (folder / "Modelfile").write_text(text)

    def install() -> None:
        running.cli("create", "bench", "-f", "Modelfile", cwd=folder)

    return install


def _remove(running: RunningDaemon) -> None:
    daemon = Daemon(running.host)
    with suppress(ModelNotInstalled):
        daemon.delete("bench")
    daemon.close()


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    sys.stdout.writelines(figure.row() + "\n" for figure in measure(given or ROUNDS))
