"""A daemon of one's own, models in it whose files may be damaged, and what looks after them.

Files are copies: a blob may be one file with its source, and the package's own must stay whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llava_ollama import catalog
from llava_ollama.catalog import Catalog
from llava_ollama.daemon import Daemon
from llava_ollama.install import from_catalog, from_files
from llava_ollama.ledger import Ledger
from llava_ollama.pins import Known
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.repair import Outcome, repair
from llava_ollama.resources import bundled
from llava_ollama.store import NoStore, Store
from llava_ollama.supply import Supply
from llava_ollama.verify import LayerReport, ModelReport, Which, verify
from llava_ollama.weights import Weights
from tests.conftest import start
from tests.daemons.running import RunningDaemon
from tests.installing import uploading

NAMES = {"model": "tiny-llava-int4.gguf", "projector": "tiny-llava-mmproj-f16.gguf"}
OURS = """
[models.tiny-llava]
template = "llama3-instruct"
parameters.num_thread = 1
projector = {{ file = "{projector}", sha256 = "{projector_sha256}"{more} }}
[models.tiny-llava.quants]
int4 = {{ file = "{model}", sha256 = "{model_sha256}"{more} }}
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class World:
    """One daemon and one user's folders."""

    running: RunningDaemon
    folder: Path
    catalog: Catalog = field(init=False)
    store: Store | NoStore = field(init=False)
    reporter: Reporter = SILENT

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.daemon = Daemon(self.running.host)
        self.records = Records(self.folder / "state")
        self.weights = Weights(downloads=self.folder / "downloads", wait=0.01)
        self.files = {
            kind: Path(shutil.copy(bundled(name), self.folder)) for kind, name in NAMES.items()
        }
        self.catalog = self.own_catalog()
        self.store = Store(self.running.models)

    def own_catalog(self, more: str = "") -> Catalog:
        """Return a catalog with the copies; with `more`, as files that are still elsewhere."""
        values = {kind: path.name for kind, path in self.files.items()}
        digests = {f"{kind}_sha256": sha256(path) for kind, path in self.files.items()}
        path = self.folder / "catalog.toml"
        path.write_text(OURS.format(more=more, **values, **digests))
        return catalog.load(path)

    @property
    def known(self) -> Known:
        return Known.of(self.daemon, self.catalog, self.records)

    def install(self, name: str = "one", *, system: str = "") -> None:
        wanted = from_catalog(self.catalog, "tiny-llava", "int4", to=name)
        self._apply(dataclasses.replace(wanted, system=system))

    def install_files(self, name: str, model: Path, projector: Path) -> None:
        """Install files that no catalog knows."""
        wanted = from_files(str(model), str(projector), name=name)
        self._apply(dataclasses.replace(wanted, parameters={"num_thread": 1}))

    def _apply(self, wanted) -> None:
        installer = uploading(self.daemon, self.weights, self.records)
        installer.apply(installer.plan(wanted))

    def verify(self, which: Which = ("one",)) -> list[ModelReport]:
        return verify(self.known, which, self.store, self.reporter)

    def layers(self, name: str = "one") -> dict[str, LayerReport]:
        (report,) = self.verify([name])
        return {layer.kind: layer for layer in report.layers}

    def states(self, name: str = "one") -> dict[str, str]:
        return {kind: layer.state for kind, layer in self.layers(name).items()}

    def repair(self, names: Sequence[str] = ("one",), **supply) -> list[Outcome]:
        things = (self.known, self.store, self.weights, Ledger(self.folder / "ledger.sqlite3"))
        return repair(names, Supply(*things, self.reporter, **supply))

    def blob(self, kind: str, name: str = "one") -> Path:
        assert isinstance(self.store, Store)
        manifest = next(m for m in self.store.manifests() if m.name == f"{name}:latest")
        if kind == "config":
            assert manifest.config
            return self.store.blob(manifest.config.sha256)
        layer = next(x for x in manifest.layers if x.media_type.endswith(f".{kind}"))
        return self.store.blob(layer.sha256)

    @property
    def quarantined(self) -> list[Path]:
        folder = self.running.models / "quarantine"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def clear(self) -> None:
        """Leave the daemon as it was."""
        self.daemon.close()
        for folder in ("manifests/registry.ollama.ai", "quarantine"):
            shutil.rmtree(self.running.models / folder, ignore_errors=True)
        for path in (self.running.models / "blobs").iterdir():
            path.unlink()


@contextmanager
def world(running: RunningDaemon, folder: Path) -> Iterator[World]:
    made = World(running, folder)
    try:
        yield made
    finally:
        made.clear()


@contextmanager
def started(version: str, folder: Path) -> Iterator[RunningDaemon]:
    daemon = start(version, folder)
    try:
        yield daemon
    finally:
        daemon.stop()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    _put(path, bytes(data))


def _put(path: Path, data: bytes) -> None:
    """Replace the file, never write into it: its inode may be a source's as well."""
    fresh = path.with_name("damaged")
    fresh.write_bytes(data)
    fresh.replace(path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit flipped": (_flip, "corrupt"),
    "deleted": (lambda path: path.unlink(), "missing"),
    "truncated": (lambda path: _put(path, path.read_bytes()[:-1]), "corrupt"),
    "other bytes, as many": (lambda path: _put(path, bytes(path.stat().st_size)), "corrupt"),
}
flip = DAMAGES["one bit flipped"][0]
