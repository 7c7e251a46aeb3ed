"""Verify: hash what a daemon holds, and hold it against its manifests and the catalog's pins.

Nothing is believed: the ledger is not asked, each file is read. What cannot be read, as the store
of a daemon on another machine, is told as not checked; the API then still tells the digests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from llava_ollama import inventory, swap
from llava_ollama.daemon import full_name
from llava_ollama.errors import DaemonUnreachable, ModelBroken, ModelNotInstalled, StoreError
from llava_ollama.ledger import Identity, Ledger
from llava_ollama.pins import Known
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.store import Layer, Manifest, NoStore, Store
from llava_ollama.weights.hashing import hash_file

State = Literal["present", "missing", "corrupt", "rewritten", "unknown"]
"""The bytes are right; there are none; they are others; they are whole, but a rewriting daemon made
them of the published ones; they were not read."""
Verdict = Literal["sound", "wrong", "unchecked"]
Which = Sequence[str] | Literal["ours", "all"]
_AT_ONCE = 2
"""Files hashed at a time: hashlib gives the interpreter free, and more only make a disk seek."""
_TASK = "verify"
_REST = 2 * 10**9
"""Nanoseconds after which another write cannot leave a file's time as it is, on any file system."""


@dataclass(frozen=True)
class LayerReport:
    """What was found of one blob; `size` in bytes as the manifest says, None without one."""

    kind: str
    """`model`, `projector`, `template`, `params`, `config`, …"""
    sha256: str
    size: int | None
    state: State
    catalog: str = ""
    """Which file of the catalog has this digest, or for a rewritten one its source's."""
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether it has to be mended."""
        return self.state in {"missing", "corrupt"}


@dataclass(frozen=True)
class ModelReport:
    """What was found of one model."""

    name: str
    layers: tuple[LayerReport, ...]
    problem: str = ""
    """Why its manifest cannot be used; its layers are then none."""
    not_checked: str = ""
    """What could not be looked at, and why."""

    @property
    def short(self) -> str:
        """Return the name as users write it, without the tag that is the default."""
        return self.name.removesuffix(":latest")

    @property
    def verdict(self) -> Verdict:
        """Whether all is proven; what is wrong weighs more than what is not known."""
        if self.problem or any(layer.bad for layer in self.layers):
            return "wrong"
        unknown = any(layer.state == "unknown" for layer in self.layers)
        return "unchecked" if unknown or self.not_checked else "sound"


def verify(
    known: Known,
    which: Which,
    store: Store | NoStore,
    reporter: Reporter = SILENT,
    *,
    ledger: Ledger | None = None,
) -> list[ModelReport]:
    """Check every layer of the models `which` of the daemon that `known` is of; only reads.

    A `ledger` is never asked, but told which links were proven.

    `ours` are the models that this tool recorded, and those made of the catalog's files.

    Raises:
        ModelNotInstalled: a name is neither in the store nor known to the daemon.
        DaemonUnreachable: nobody answers.
    """
    if isinstance(store, NoStore):
        return _by_api(known, which, f"{store.reason}. {store.hint}")
    try:
        found = [m for m in store.manifests() if m.name]
    except StoreError as exc:
        return _by_api(known, which, f"{exc.message}. {exc.hint}")
    chosen = _chosen(known, which, found)
    layers = [layer for manifest in chosen for layer in manifest.blobs]
    hashed = hash_blobs(store, (layer.sha256 for layer in layers), reporter)
    for digest, blob in hashed.items() if ledger else ():
        if ledger and blob.identity and blob.sha256 == digest:
            ledger.remember(digest, blob.identity)
    return [_model(known, manifest, hashed) for manifest in chosen]


def _chosen(known: Known, which: Which, found: list[Manifest]) -> list[Manifest]:
    if which == "all":
        return found
    if which == "ours":
        return [manifest for manifest in found if _is_ours(known, manifest)]
    by_name = {manifest.name.lower(): manifest for manifest in found}
    chosen = []
    for name in which:
        manifest = by_name.get(listed_name(name).lower())
        if manifest is None:
            with inventory.did_you_mean(known.daemon, name):
                raise ModelNotInstalled(
                    f"the daemon at {known.daemon.host} has no model `{name}`",
                    hint="`llava-ollama list` shows what is installed",
                )
        chosen.append(manifest)
    return list(dict.fromkeys(chosen))


def listed_name(name: str) -> str:
    """Return a name as the daemon lists it: with its tag, without what is default."""
    return full_name(name).removeprefix("registry.ollama.ai/").removeprefix("library/")


def _is_ours(known: Known, manifest: Manifest) -> bool:
    if manifest.name.startswith((f"{swap.PREFIX}new-", f"{swap.PREFIX}old-")):
        return False  # of an install under way, or of a killed one: `doctor` tells of it
    files = manifest.files()
    return known.recorded(manifest.name) or bool(files and all(map(known.label, files)))


def _model(known: Known, manifest: Manifest, hashed: Mapping[str, Hashed]) -> ModelReport:
    layers = [_layer(known, layer, hashed[layer.sha256]) for layer in manifest.layers]
    if manifest.config:
        config = _layer(known, manifest.config, hashed[manifest.config.sha256])
        layers.append(replace(config, kind="config"))
    return ModelReport(manifest.name, tuple(layers), problem=manifest.problem or "")


def _layer(known: Known, layer: Layer, found: Hashed) -> LayerReport:
    state: State = "present"
    detail = found.problem
    if found.problem:
        state = "unknown"
    elif found.sha256 is None:
        state, detail = "missing", "there is no such file"
    elif found.sha256 != layer.sha256:
        state, detail = "corrupt", f"its bytes have sha256 {found.sha256[:12]}…"
        if found.size != layer.size:
            detail = f"it has {found.size:,} bytes of {layer.size:,}"
    elif (source := known.source(layer.sha256)) != layer.sha256:
        state, detail = "rewritten", f"the daemon made it of sha256 {source[:12]}…"
    kind = layer.media_type.rpartition(".")[2]
    return LayerReport(
        kind, layer.sha256, layer.size, state, catalog=known.label(layer.sha256), detail=detail
    )


@dataclass(frozen=True)
class Hashed:
    """What reading one blob came to; without `sha256` and `problem` there is no such file."""

    sha256: str | None = None
    size: int = 0
    problem: str = ""
    identity: Identity | None = None
    """Of a file that has other names and was at rest: what `doctor` would suspect otherwise."""


def hash_blobs(store: Store, digests: Iterable[str], reporter: Reporter) -> dict[str, Hashed]:
    """Read the blobs with these digests, two at a time, and return what they really have."""
    sizes = {digest: _size(store, digest) for digest in dict.fromkeys(digests)}
    # The largest first: with a small one last, both threads have work to the end.
    order = sorted(sizes, key=lambda digest: -sizes[digest])
    together = _Together(reporter)
    reporter.started(_TASK, sum(sizes.values()))
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                found = pool.map(lambda digest: _hash(store, digest, together), order)
                return dict(zip(order, found, strict=True))
            except BaseException:  # an interrupt, mostly
                together.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        reporter.finished(_TASK)


class _Together(Reporter):
    """Adds up the progress of all threads, as one task: no reporter is made for several."""

    def __init__(self, reporter: Reporter) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._reporter = reporter

    def advanced(self, task: str, amount: int) -> None:
        """Pass it on; end the thread where the work was given up."""
        del task
        if self.stopped.is_set():
            raise CancelledError
        with self._lock:
            self._reporter.advanced(_TASK, amount)


def _size(store: Store, digest: str) -> int:
    try:
        return store.blob(digest).stat().st_size
    except OSError:
        return 0


def _hash(store: Store, digest: str, reporter: Reporter) -> Hashed:
    path = store.blob(digest)
    try:
        before = path.stat()
        identity = Identity.of(path)
        sha256, size = hash_file(path, reporter)
        linked = before.st_nlink > 1 and time.time_ns() - before.st_mtime_ns > _REST
        same = Identity.of(path) == identity
        return Hashed(sha256, size, identity=identity if linked and same else None)
    except FileNotFoundError:
        return Hashed()
    except OSError as exc:
        return Hashed(problem=(exc.strerror or type(exc).__name__).lower())


def _by_api(known: Known, which: Which, why: str) -> list[ModelReport]:
    """Check what the API tells: the digests after FROM, and whether the daemon has such files."""
    listed = [model.name for model in known.daemon.models()]
    if isinstance(which, str):
        return [r for n in listed if (r := _asked(known, n, why, ours=which == "ours")) is not None]
    reports = []
    for name in which:
        # 0.24 says "not found" also of a model that lacks a file.
        if listed_name(name).lower() not in map(str.lower, listed):
            with inventory.did_you_mean(known.daemon, name):
                known.daemon.show(name)
        if (report := _asked(known, listed_name(name), why, ours=False)) is not None:
            reports.append(report)
    return reports


def _asked(known: Known, name: str, why: str, *, ours: bool) -> ModelReport | None:
    """Return what the daemon tells of a model that it lists; with `ours`, None for any other."""
    recorded = known.recorded(name)
    try:
        shown = known.daemon.show(name)
    except DaemonUnreachable:
        raise
    except (ModelBroken, ModelNotInstalled) as exc:
        return ModelReport(name, (), problem=exc.message) if recorded or not ours else None
    if ours and not recorded and not (shown.sources and all(map(known.label, shown.sources))):
        return None
    layers = tuple(
        _digest(known, digest, "projector" if at else "model")
        for at, digest in enumerate(shown.sources)
    )
    return ModelReport(name, layers, not_checked=f"no byte was read: {why}")


def _digest(known: Known, sha256: str, kind: str) -> LayerReport:
    state: State = "unknown"
    detail = "the daemon has a file of this name"
    if not known.daemon.has_blob(sha256):
        state, detail = "missing", "the daemon has no such file"
    elif (source := known.source(sha256)) != sha256:
        state, detail = "rewritten", f"the daemon made it of sha256 {source[:12]}…"
    return LayerReport(kind, sha256, None, state, catalog=known.label(sha256), detail=detail)
