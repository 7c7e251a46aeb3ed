"""Repair: bad blobs go into quarantine, and the right bytes come back by the cheapest transfer.

A blob is mended once, whoever shares it. Weight files come from their `supply`; what the daemon
wrote itself (template, parameters, config, rewritten files) it writes again, in a `create` under a
temporary name. What cannot be had stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ollama import locks, planning, quarantine, swap
from llava_ollama.daemon import Daemon
from llava_ollama.errors import DaemonError, LlavaOllamaError, StoreError
from llava_ollama.package import Package
from llava_ollama.pins import Known
from llava_ollama.store import NoStore, Store
from llava_ollama.supply import Supply
from llava_ollama.verify import LayerReport, ModelReport, State, hash_blobs, verify

_FILE_NAMES = {"model": "model.gguf", "projector": "projector.gguf"}
"""Names that sort in this order: 0.34 takes the files of a `create` by name."""
_TRIES = 12
"""0.24 takes them in random order, and its config says in which: every second is the same again.
Daemons that rewrite, which takes a minute, are not random."""


@dataclass(frozen=True)
class Outcome:
    """What became of one bad blob."""

    sha256: str
    kind: str
    was: State
    models: tuple[str, ...]
    """All that have it, also those that were not asked for."""
    how: str = ""
    """How the right bytes came back: a transfer's word or `create`."""
    quarantine: Path | None = None
    """Where the wrong ones are now."""
    problem: str = ""
    """Why it could not be mended; empty where it was."""
    hint: str = ""


def repair(names: Sequence[str], supply: Supply) -> list[Outcome]:
    """Find what is bad in these models and mend it; return what became of each blob.

    Raises:
        StoreError: a manifest cannot be read, so nobody knows what belongs to the name.
        ModelNotInstalled: there is no such name.
    """
    known = supply.known

    def waiting() -> None:
        supply.reporter.note("another process repairs models of this daemon; waiting for it")

    # What another process has just mended must not be taken for what was bad before.
    lock = known.records.lock_file("pending", known.daemon.key, "repair")
    with locks.locked(lock, waiting=waiting):
        return _repair(names, supply)


def _repair(names: Sequence[str], supply: Supply) -> list[Outcome]:
    known, store = supply.known, supply.store
    reports = verify(known, names, store, supply.reporter)
    for report in reports:
        if report.problem:
            raise StoreError(
                f"the manifest of `{report.short}` cannot be used: {report.problem}",
                hint="Install the model again with `--force`",
            )
    users = _users(reports, store)
    outcomes: dict[str, Outcome] = {}
    for report in reports:
        bad = [x for x in report.layers if x.bad and x.sha256 not in outcomes]
        files = [x for x in bad if x.kind in _FILE_NAMES and x.sha256 not in known.sources]
        for layer in files:
            outcomes[layer.sha256] = _file(supply, layer, users[layer.sha256])
        written = [x for x in bad if x not in files]
        for outcome in _written(supply, report, written, users) if written else ():
            outcomes[outcome.sha256] = outcome
    _renew(supply, reports)
    _unload(known.daemon, outcomes.values())
    return list(outcomes.values())


def _users(reports: Iterable[ModelReport], store: Store | NoStore) -> dict[str, tuple[str, ...]]:
    """Return which models have each blob."""
    users: dict[str, set[str]] = {}
    for report in reports:
        for layer in report.layers:
            users.setdefault(layer.sha256, set()).add(report.name)
    for manifest in store.manifests() if isinstance(store, Store) else ():
        for blob in manifest.blobs:
            users.setdefault(blob.sha256, set()).add(manifest.name)
    return {digest: tuple(sorted(names)) for digest, names in users.items()}


def _file(supply: Supply, layer: LayerReport, models: tuple[str, ...]) -> Outcome:
    """Mend a weight file that has the published bytes, or those of somebody's own."""
    moving = _Moving(supply.store, [layer])
    outcome = Outcome(layer.sha256, layer.kind, layer.state, models)
    try:
        moving.check()
        how = supply.bring(layer.sha256, layer.size, moving)
    except LlavaOllamaError as exc:
        return replace(outcome, problem=exc.message, hint=exc.hint or "")
    return _proven(supply, replace(outcome, how=how, quarantine=moving.places.get(layer.sha256)))


def _written(
    supply: Supply,
    report: ModelReport,
    layers: Sequence[LayerReport],
    users: dict[str, tuple[str, ...]],
) -> list[Outcome]:
    """Mend what the daemon wrote itself by having it write the same again."""
    outcomes = [Outcome(x.sha256, x.kind, x.state, users[x.sha256]) for x in layers]
    moving = _Moving(supply.store, layers)
    try:
        moving.check()
        with moving():
            _write_again(supply, report, [x.sha256 for x in layers])
    except LlavaOllamaError as exc:
        return [replace(x, problem=exc.message, hint=exc.hint or "") for x in outcomes]
    return [
        _proven(supply, replace(x, how="create", quarantine=moving.places.get(x.sha256)))
        for x in outcomes
    ]


def _write_again(supply: Supply, report: ModelReport, missing: Sequence[str]) -> None:
    """Make the model under a temporary name, which goes again; its blobs stay with the real one.

    Nobody has written down which words belong to the name. What the daemon shows is tried, then
    the catalog's; whether it was right is seen from the digests.
    """
    daemon, reporter = supply.known.daemon, supply.reporter
    with swap.exclusive(daemon, supply.known.records, report.name, reporter) as exchange:
        for package in _packages(supply.known, report):
            for digest in (package.model, package.projector):
                if not daemon.has_blob(digest):  # of a rewritten file, its source
                    supply.bring(digest, None, nullcontext)
            exchange.alone(reporter)
            for _ in range(1 if supply.known.sources else _TRIES):
                _create(daemon, exchange.temporary, package)
                if all(map(daemon.has_blob, missing)):
                    return
    raise StoreError(
        f"what the daemon wrote for `{report.short}` cannot be made again",
        hint="Install the model again with `--force`",
    )


def _create(daemon: Daemon, name: str, package: Package) -> None:
    files = dict(zip(_FILE_NAMES.values(), (package.model, package.projector), strict=True))
    for _ in daemon.create(
        name,
        files=files,
        template=package.template,
        system=package.system,
        parameters={"stop": (), **package.parameters},
    ):
        pass


def _packages(known: Known, report: ModelReport) -> Iterator[Package]:
    """Yield what the model may have been made of."""
    by_kind = {x.kind: known.source(x.sha256) for x in report.layers if x.kind in _FILE_NAMES}
    if by_kind.keys() != _FILE_NAMES.keys():
        return
    with suppress(DaemonError):
        if package := known.daemon.show(report.name).package():
            yield replace(package, model=by_kind["model"], projector=by_kind["projector"])
    for entry in known.catalog.entries.values():
        for quant, file in entry.quants.items():
            if by_kind == {"model": file.sha256, "projector": entry.projector.sha256}:
                wanted = planning.from_catalog(known.catalog, entry.name, quant)
                yield wanted.package(**by_kind)


class _Moving:
    """Moves the corrupt ones of some blobs into quarantine while it is open."""

    def __init__(self, store: Store | NoStore, layers: Sequence[LayerReport]) -> None:
        self.places: dict[str, Path] = {}
        self._store = store
        self._corrupt = [layer.sha256 for layer in layers if layer.state == "corrupt"]

    def check(self) -> None:
        """Raise if there is something to move, and it cannot be."""
        if isinstance(self._store, Store) and self._corrupt and self._store.not_writable:
            raise StoreError(
                f"the wrong bytes cannot be moved away: {self._store.not_writable}",
                hint="Run it as the user that the daemon runs as, or with `sudo -E`",
            )

    def __call__(self) -> AbstractContextManager[object]:
        """Move them; what has not been replaced at the end moves back."""
        with ExitStack() as moved:
            if isinstance(self._store, Store):
                for digest in self._corrupt:
                    place = moved.enter_context(quarantine.aside(self._store, digest))
                    self.places[digest] = place
            return moved.pop_all()


def _proven(supply: Supply, outcome: Outcome) -> Outcome:
    """Return the outcome, with a problem if what came is not right after all."""
    digest, store = outcome.sha256, supply.store
    if isinstance(store, NoStore):
        right = supply.known.daemon.has_blob(digest)
    else:
        right = hash_blobs(store, [digest], supply.reporter)[digest].sha256 == digest
    if right:
        return outcome
    problem = "what was brought does not have the right bytes"
    return replace(outcome, problem=problem, hint="Look after the disk, and run it again")


def _renew(supply: Supply, reports: Iterable[ModelReport]) -> None:
    """Tell the ledger the new times of linked files: a `create` has touched them."""
    if isinstance(store := supply.store, Store):
        for layer in (layer for report in reports for layer in report.layers):
            supply.ledger.renew(store.blob(layer.sha256), layer.sha256)


def _unload(daemon: Daemon, outcomes: Iterable[Outcome]) -> None:
    """Have the daemon drop from its memory what was mended: it would go on with the old bytes."""
    for name in {name for x in outcomes if not x.problem for name in x.models}:
        with suppress(DaemonError):
            daemon.unload(name)
