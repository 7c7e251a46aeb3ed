"""Supply: the bytes of one digest, from wherever they can be had, into the daemon.

What a repair needs, which knows a digest and no more: the catalog or a folder of the user's knows
the file, `weights` finds and proves it, the cheapest transfer brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_ollama.catalog import WeightFile
from llava_ollama.errors import ChecksumMismatch, DaemonError, DownloadError, LlavaOllamaError
from llava_ollama.ledger import Identity, Ledger
from llava_ollama.pins import Known
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.store import NoStore, Store
from llava_ollama.transfer import Blob, How, Link, Pull, Transfer, Upload, choose
from llava_ollama.transfer.pull import LIBRARY
from llava_ollama.weights import LocalFile, Weights

Moving = Callable[[], AbstractContextManager[object]]
"""Moves wrong bytes out of the way for as long as the right ones are brought."""


@dataclass(frozen=True)
class Supply:
    """Brings weight files by digest."""

    known: Known
    store: Store | NoStore
    weights: Weights
    ledger: Ledger
    reporter: Reporter = SILENT
    registry: str = LIBRARY
    no_pull: str | None = None
    """A reason not to have the daemon fetch from the registry, such as a Hub mirror."""
    _fresh: dict[LocalFile, WeightFile] = field(default_factory=dict, init=False, repr=False)
    """Downloaded only for this."""

    def bring(self, sha256: str, size: int | None, moving: Moving) -> How:
        """Make the daemon hold the file; nothing is moved before its bytes are at hand.

        Raises:
            LlavaOllamaError: it is not to be had, or not to be brought.
        """
        files = list(self._files(sha256, size))
        remote = Blob(None, sha256, size or (files[0].size if files else 0) or 0)
        pull = self._pull(sha256)
        ways = (
            Link(self.known.daemon, self.store, self.ledger),
            Upload(self.known.daemon, self.ledger),
        )
        pulled = not self._at_hand(files) and choose((*ways, pull), remote).transfer is pull
        if pulled:
            try:
                return self._by(pull, remote, moving)
            except DaemonError as exc:
                self.reporter.note(f"{exc.message}; the file is fetched here instead")
        try:
            local = self._fetch(files, sha256)
        except DownloadError:
            if pulled or pull.why_not(remote) is not None:
                raise
            return self._by(pull, remote, moving)
        blob = Blob(local.path, local.sha256, local.size)
        try:
            return self._by(choose(ways, blob).transfer, blob, moving)
        finally:
            self._discard(local)

    def _by(self, transfer: Transfer, blob: Blob, moving: Moving) -> How:
        done = False
        with moving():
            try:
                brought = transfer.bring(blob, self.reporter)
                done = True
            finally:
                transfer.settle([blob], self.reporter, registered=done)
        return brought.how

    def _pull(self, sha256: str) -> Pull:
        pin = self.known.pins.get(sha256)
        return Pull(
            self.known.daemon,
            self.known.records,
            pin.library if pin else None,
            pin.wanted if pin else frozenset(),
            registry=self.registry,
            not_now=self.no_pull,
        )

    def _files(self, sha256: str, size: int | None) -> Iterator[WeightFile]:
        """Yield what may be the file: the catalog's, else those of this size in the folders."""
        if pin := self.known.pins.get(sha256):
            # Without a size the Hub would be asked, also where the file is not to come from there.
            yield replace(pin.file, size=pin.file.size or size)
            return
        for folder in self.weights.folders:
            for path in _of_size(folder, size):
                yield WeightFile(name=path.name, path=path, sha256=sha256, size=size)

    def _at_hand(self, files: Sequence[WeightFile]) -> bool:
        for file in files:
            try:
                if self.weights.locate(file).path is not None:
                    return True
            except LlavaOllamaError:
                continue
        return False

    def _fetch(self, files: Sequence[WeightFile], sha256: str) -> LocalFile:
        """Return the file on this machine, its bytes just read."""
        problem: DownloadError = DownloadError(
            f"no file with sha256 {sha256[:12]}… is known",
            hint="Name the folder that has it with `--dir`",
        )
        # A copy that has suffered as the blob has, being one file with it, is passed over.
        beside = replace(self.weights, folders=(), hub_cache=self.weights.downloads / "no-cache")
        for file in files:
            for weights in (self.weights, beside) if file.path is None else (self.weights,):
                try:
                    return self._fetched(weights, file)
                except ChecksumMismatch as exc:
                    self.reporter.note(f"{exc.message}: passed over")
                    problem = exc
        raise problem

    def _fetched(self, weights: Weights, file: WeightFile) -> LocalFile:
        fresh = file.path is None and weights.locate(file).path is None
        if fresh:  # a kill must not leave gigabytes that nobody knows of
            self.known.records.put("transient", *file.key, record={"name": file.name})
        local = weights.fetch(file)
        self.ledger.remember(local.sha256, Identity.of(local.path))
        if fresh:
            self._fresh[local] = file
        return local

    def _discard(self, local: LocalFile) -> None:
        """Remove what was made or downloaded for this; the blob has its bytes, or its link."""
        file = self._fresh.pop(local, None)
        if file or local.origin == "mended":
            self.weights.discard(local)
        if file and file.source:
            self.weights.forget(file.source)
        if file:
            self.known.records.drop("transient", *file.key)


def _of_size(folder: Path, size: int | None) -> Iterator[Path]:
    """Yield the files of this size; what cannot be looked at, as a link to nothing, is none."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return
    for path in paths:
        with suppress(OSError):
            if path.is_file() and path.stat().st_size == size:
                yield path
