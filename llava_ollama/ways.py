"""Ways: by which ways bytes can get into one daemon, and for each file the cheapest of them.

`choose` only reads. `bring` acts, and goes on by another way where the chosen one turns out not to
be open, unless the user has named it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from llava_ollama import store
from llava_ollama.daemon import Daemon
from llava_ollama.errors import (
    ChecksumMismatch,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    StoreError,
)
from llava_ollama.ledger import LEDGER, Identity, Ledger
from llava_ollama.progress import Reporter
from llava_ollama.records import Records
from llava_ollama.store import NoStore, Store
from llava_ollama.transfer import Blob, Brought, Choice, Link, Name, Pull, Transfer, Upload, choose
from llava_ollama.transfer import pull as pulling
from llava_ollama.transfer.interface import THERE

_TOUCHED = 3
"""Attempts at a file that another install touches meanwhile, before the last one."""


class TakenAway(StoreError):
    """Another model's removal took away a blob which the way that the user names cannot bring now.

    A pull waits for locks that must not be waited for with the one in hand that `create` needs.
    """


@dataclass(kw_only=True, eq=False)
class Ways:
    """The ways to one daemon, for as long as one command runs."""

    daemon: Daemon
    records: Records
    ledger: Ledger
    folders: Sequence[Path] = ()
    """Folders that may be the daemon's store."""
    only: Name | None = None
    """The one way that the user allows."""
    registry: str = pulling.LIBRARY
    no_pull: str | None = None
    """Why the daemon is not to pull, unless the user says so."""
    pull_patience: float = pulling.PATIENCE
    """Seconds that a pull may stand still."""
    _pull: Pull | None = field(default=None, init=False)
    _proven: Store | NoStore | None = field(default=None, init=False)
    _closed: set[Name] = field(default_factory=set, init=False)
    _brought: set[str] = field(default_factory=set, init=False)
    _noted: bool = field(default=False, init=False)

    @classmethod
    def plain(cls, daemon: Daemon, records: Records, cache: Path) -> Ways:
        """Return the ways without any settings; the ledger is in the folder `cache`."""
        return cls(daemon=daemon, records=records, ledger=Ledger(cache / LEDGER))

    @property
    def offered(self) -> bool:
        """Whether `offer` has been called."""
        return self._pull is not None

    def offer(self, tag: str | None, wanted: frozenset[str], *, begun: bool) -> None:
        """Say that the public `tag` may have just these two files (sha256 in hex digits).

        With one of them `begun`, here already in part or whole, a pull would fetch it again.
        """
        not_now = self.no_pull or ("one of the files is on this machine already" if begun else None)
        self._pull = Pull(
            self.daemon,
            self.records,
            tag,
            wanted,
            registry=self.registry,
            not_now=None if self.only == "pull" else not_now,
            patience=self.pull_patience,
        )

    def choose(self, blob: Blob) -> Choice:
        """Return the cheapest way, and why not the others; an unproven store counts as proven.

        Raises:
            StoreError: none is possible.
        """
        return choose(self._open_ways(self._likely_store), self._seen(blob))

    @property
    def unproven(self) -> Path | None:
        """The folder that will be asked about before anything is linked into it, if one will."""
        likely = self._likely_store if self.only in {None, "link"} else None
        return likely.folder if isinstance(likely, Store) and likely != self._store else None

    def bring(self, blob: Blob, fetch: Callable[[], Path], reporter: Reporter) -> Brought:
        """Make the daemon hold the blob, by the cheapest way that works.

        `fetch` brings the file to this machine, for a blob without a path that is not pulled.

        Raises:
            StoreError: no way is open.
            DaemonError: the daemon did not take it.
            TakenAway: it was brought by a way that is closed now, and is gone again.
        """
        if self.daemon.has_blob(blob.sha256):
            return self._there(blob)
        if self.only in self._closed:
            raise TakenAway(
                f"the file of sha256 {blob.sha256[:8]}… is gone again: a model with it was removed",
                hint="Run the same command again",
            )
        choice = choose(self._open_ways(self._prove()), self._seen(blob))
        if blob.path is None and choice.transfer.name != "pull":
            return self.bring(replace(blob, path=fetch()), fetch, reporter)
        way = choice.transfer
        self._note(choice, reporter)
        try:
            brought = self._bring(way, self._seen(blob), reporter)
        except (StoreError, DaemonError) as exc:
            hopeless = isinstance(exc, DaemonUnreachable | DaemonTimeout)
            if hopeless or way.name in {self.only, "upload"}:
                raise
            reporter.note(f"{exc.message}; going on by another way")
            self.close(way.name)
        else:
            self._brought.add(blob.sha256)
            return brought
        return self.bring(blob, fetch, reporter)

    def close(self, way: Name) -> None:
        """Use this way no more."""
        self._closed.add(way)

    def open_again(self, way: Name) -> None:
        """Use this way again."""
        self._closed.discard(way)

    def settle(self, blobs: Iterable[Blob], reporter: Reporter, *, registered: bool) -> None:
        """Look after the blobs when `create` is over, or given up.

        It has touched every blob, and with a hard link the user's file: the ledger follows.
        """
        blobs = list(blobs)
        if isinstance(self._proven, Store) and "link" not in self._closed:
            link = Link(self.daemon, self._proven, self.ledger)
            link.settle(blobs, reporter, registered=registered)
        if self._pull is not None:
            self._pull.settle(blobs, reporter, registered=registered)

    def _bring(self, way: Transfer, blob: Blob, reporter: Reporter) -> Brought:
        """Bring the blob; again, all anew, where its file was touched and has its size still.

        Another install's `create` touches a linked file, which then seems to have changed.
        """
        for _ in range(_TOUCHED):
            before = _identity(blob)
            try:
                return way.bring(blob, reporter)
            except ChecksumMismatch:
                after = _identity(blob)
                if before is None or after is None or before == after or before.size != after.size:
                    raise
        return way.bring(blob, reporter)

    def _there(self, blob: Blob) -> Brought:
        """Return how a blob that is there got there: one pull brings both files."""
        by_us = self._pull is not None and self._pull.has_fetched(blob.sha256)
        if not by_us or blob.sha256 in self._brought:
            return THERE
        self._brought.add(blob.sha256)
        return Brought("pull", written=blob.size)

    def _open_ways(self, found: Store | NoStore | None) -> list[Transfer]:
        """Return the ways; of those that cost the same the first is taken."""
        ways: list[Transfer] = [self._pull] if self._pull is not None else []
        if found is not None:
            ways.append(Link(self.daemon, found, self.ledger))
        ways.append(Upload(self.daemon, self.ledger))
        ways = [way for way in ways if way.name not in self._closed]
        return [way for way in ways if self.only in {None, way.name}]

    def _seen(self, blob: Blob) -> Blob:
        """Return the blob as the ways are to see it: a forced pull does not look at this disk."""
        return replace(blob, path=None) if self.only == "pull" else blob

    @cached_property
    def _store(self) -> Store | NoStore | None:
        """The daemon's store, as far as reading tells; None where nobody wants to know."""
        return store.find(self.daemon, self.folders) if self.only in {None, "link"} else None

    @property
    def _likely_store(self) -> Store | NoStore | None:
        found = self._proven or self._store
        if isinstance(found, NoStore):
            likely = (Store(folder) for folder in found.unproven)
            return next((place for place in likely if place.writable), found)
        return found

    def _prove(self) -> Store | NoStore | None:
        """Return the daemon's store; an empty daemon is asked with a blob of a few bytes."""
        if self._proven is None:
            found = self._store
            if isinstance(found, NoStore) and found.unproven:
                found = store.prove(self.daemon, found.unproven, self.records)
            self._proven = found
        return self._proven

    def _note(self, choice: Choice, reporter: Reporter) -> None:
        """Say once what would have been cheaper than to send every byte, and how."""
        found = self._proven
        if self._noted or self.only or choice.transfer.name != "upload" or found is None:
            return
        self._noted = True
        if isinstance(found, NoStore):
            reason, hint = found.reason, found.hint
        elif found.not_writable:
            reason, hint = found.not_writable, "Run it with `sudo -E` to link instead of uploading"
        else:
            return
        reporter.note(f"{reason}. So each byte is read here and written there. {hint}")


def _identity(blob: Blob) -> Identity | None:
    try:
        return Identity.of(blob.path) if blob.path else None
    except OSError:
        return None


def recover(daemon: Daemon, records: Records) -> None:
    """Remove what killed processes left on their ways: probes, and names pulled for their blobs."""
    store.recover(records)
    pulling.recover(daemon, records)
