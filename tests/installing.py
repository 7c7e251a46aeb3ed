"""Bring pairs of files into a daemon by the program's own way, and take them out again."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from llava_ollama.daemon import Daemon
from llava_ollama.install import Installer, Wanted, from_files
from llava_ollama.ledger import Ledger
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.resources import bundled
from llava_ollama.ways import Ways
from llava_ollama.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

PROJECTOR = bundled("tiny-llava-mmproj-f16.gguf")
QUANTS = {"f16": bundled("tiny-llava-f16.gguf"), "int4": bundled("tiny-llava-int4.gguf")}
MODEL = QUANTS["int4"]
ONE_THREAD = {"num_thread": 1}
"""More only spin on a model this small: two made it five times slower."""


class Listening(Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.notes: list[str] = []

    def started(self, task: str, total: int | None = None) -> None:  # noqa: ARG002
        self.tasks.append(task)

    def note(self, message: str) -> None:
        self.notes.append(message)


def install(
    host: str, folder: Path, name: str, *, model: Path = MODEL, projector: Path = PROJECTOR
) -> str:
    """Install a pair as `name`; `folder` is for what the program writes down."""
    wanted = from_files(str(model), str(projector), name=name)
    return install_wanted(host, folder, dataclasses.replace(wanted, parameters=ONE_THREAD))


def install_wanted(host: str, folder: Path, wanted: Wanted) -> str:
    daemon = Daemon(host)
    try:
        weights = Weights(downloads=folder / "downloads")
        installer = uploading(daemon, weights, Records(folder / "state"))
        return installer.apply(installer.plan(wanted)).name
    finally:
        daemon.close()


def uploading(
    daemon: Daemon, weights: Weights, records: Records, reporter: Reporter = SILENT
) -> Installer:
    """Return an installer that links nothing, so that no test changes the files it came from."""
    ledger = Ledger(weights.downloads.parent / "ledger.sqlite3")
    ways = Ways(daemon=daemon, records=records, ledger=ledger, only="upload")
    return Installer(daemon, weights, records, ways=ways, reporter=reporter)


def remove(host: str, name: str) -> None:
    daemon = Daemon(host)
    try:
        daemon.delete(name)
    finally:
        daemon.close()
