"""Link: the daemon's store is on this machine and ours to write, so bytes stay where they are.

A reflink (the file system shares the blocks until one of the two is changed), else a hard link
(one file, two names), else a copy. The daemon never hashes a blob that it finds, so what is linked
is proven before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from llava_ollama.daemon import Daemon
from llava_ollama.errors import StoreError
from llava_ollama.ledger import Identity, Ledger
from llava_ollama.progress import Reporter
from llava_ollama.store import NoStore, Store
from llava_ollama.transfer.interface import THERE, Blob, Brought, Cost
from llava_ollama.transfer.sources import changed, opened, wrong

_CHUNK = 1 << 20
_FICLONE = 0x40049409
"""ioctl_ficlone(2); Python's fcntl has it by name from 3.12 on. Btrfs, XFS, bcachefs, ZFS."""
_OWNER_READS = 0o400
_TRIES = 3


@dataclass(frozen=True)
class Link:
    """Puts files into a daemon's store without copying them where that can be."""

    daemon: Daemon
    store: Store | NoStore
    ledger: Ledger
    name: Literal["link"] = field(default="link", init=False)

    def why_not(self, blob: Blob) -> str | None:
        """Return why the store cannot be written, if so."""
        del blob
        return self.store.reason if isinstance(self.store, NoStore) else self.store.not_writable

    def cost(self, blob: Blob) -> Cost:
        """Return what a hard link or a copy costs; whether a reflink can be is seen by trying."""
        if blob.path is None:  # it is hashed while it is downloaded
            return Cost(written=blob.size, fetched=blob.size)
        try:
            if not self._can_hard_link(blob.path.stat()):
                return Cost(read=blob.size, written=blob.size)
            known = self.ledger.known(blob.path)
        except OSError:
            known = None
        return Cost() if known else Cost(read=blob.size)

    def bring(self, blob: Blob, reporter: Reporter) -> Brought:
        """Link the file, or copy it, unless the daemon has it."""
        store = self.store
        if isinstance(store, NoStore):
            raise StoreError(store.reason, hint=store.hint)
        if self._is_there(blob, store):
            return THERE
        for _ in range(_TRIES):
            with opened(blob) as file, store.writing():
                done = (
                    self._reflink(blob, file, store, reporter)
                    or self._hard_link(blob, file, store, reporter)
                    or self._copy(blob, file, store, reporter)
                )
            if self.daemon.has_blob(blob.sha256):
                return done
            if store.blob(blob.sha256).exists():
                break
            # The removal of another model with this blob has taken it away in between.
        store.blob(blob.sha256).unlink(missing_ok=True)
        raise self._not_its_store(store)

    def settle(self, blobs: Sequence[Blob], reporter: Reporter, *, registered: bool) -> None:
        """Bring back what the daemon pruned meanwhile, and remember the times that it set.

        A hard link has its source's old mtime, so the hour's grace that the daemon gives to blobs
        without a manifest does not protect it until `create` has touched it.
        """
        for blob in blobs if registered else ():
            if blob.path is not None:
                if not self.daemon.has_blob(blob.sha256):
                    self.bring(blob, reporter)
                self.ledger.renew(blob.path, blob.sha256)

    def _is_there(self, blob: Blob, store: Store) -> bool:
        if self.daemon.has_blob(blob.sha256):
            return True
        # Another daemon's blob must neither be replaced nor, as unseen, be taken away.
        if store.blob(blob.sha256).exists() and not self.daemon.has_blob(blob.sha256):
            raise self._not_its_store(store)
        return False

    def _not_its_store(self, store: Store) -> StoreError:
        return StoreError(
            f"what is in `{store.folder}` does not appear at {self.daemon.host}",
            hint="It is another daemon's folder; use `--transfer upload`",
        )

    def _reflink(
        self, blob: Blob, file: BinaryIO, store: Store, reporter: Reporter
    ) -> Brought | None:
        before = Identity.of(file.fileno())
        if before.device != store.device:
            return None
        read = 0

        def clone(target: int) -> None:
            nonlocal read
            _clone(file.fileno(), target)
            read = self._prove(blob, before, reporter)

        try:
            store.put(blob.sha256, clone)
        except _NoReflinkError:
            return None
        return Brought("reflink", read=read)

    def _hard_link(
        self, blob: Blob, file: BinaryIO, store: Store, reporter: Reporter
    ) -> Brought | None:
        assert blob.path is not None  # noqa: S101 - it is open
        if not self._can_hard_link(os.fstat(file.fileno())):
            return None
        before = Identity.of(file.fileno())
        read = self._prove(blob, before, reporter)
        os.fsync(file.fileno())
        try:
            if not store.link(blob.sha256, blob.path):
                return Brought("there", read=read)
        except OSError:  # too many links to one file, or a system that protects hard links
            return None
        if Identity.of(store.blob(blob.sha256)) != before:
            store.blob(blob.sha256).unlink()
            raise changed(blob)
        return Brought("hard link", read=read)

    def _copy(self, blob: Blob, file: BinaryIO, store: Store, reporter: Reporter) -> Brought:
        """Copy the file; it is hashed on the way, so also a known one need not be believed."""
        before = Identity.of(file.fileno())
        task = f"copy {blob.sha256[:12]}"
        reporter.started(task, blob.size)

        def write(target: int) -> None:
            digest, size = hashlib.sha256(), 0
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > blob.size:
                    raise wrong(blob)
                digest.update(chunk)
                _write(target, chunk)
                reporter.advanced(task, len(chunk))
            if digest.hexdigest() != blob.sha256:
                raise wrong(blob)

        try:
            store.put(blob.sha256, write)
        finally:
            reporter.finished(task)
        if Identity.of(file.fileno()) == before:
            self.ledger.remember(blob.sha256, before)
        return Brought("copy", read=blob.size, written=blob.size)

    def _prove(self, blob: Blob, before: Identity, reporter: Reporter) -> int:
        """See to it that the file in this state has the blob's bytes; return how many were read."""
        assert blob.path is not None  # noqa: S101 - it is open
        if before.size != blob.size:
            raise wrong(blob)
        found, read = self.ledger.known(blob.path), 0
        if found is None or found.sha256 != blob.sha256:
            # Nothing is refused on the ledger's word alone.
            found, read = self.ledger.hash(blob.path, reporter), blob.size
        if found.identity != before:
            raise changed(blob)
        if found.sha256 != blob.sha256:
            raise wrong(blob)
        return read

    def _can_hard_link(self, source: os.stat_result) -> bool:
        """Whether the daemon could use the file itself: it sets its times, so it must own it."""
        assert isinstance(self.store, Store)  # noqa: S101 - asked after `why_not`
        return (
            source.st_dev == self.store.device
            and source.st_uid == self.store.uid
            and bool(source.st_mode & _OWNER_READS)
        )


class _NoReflinkError(Exception):
    """This file system has no reflinks, or not between these two files."""


def _clone(source: int, target: int) -> None:
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as exc:
        raise _NoReflinkError from exc


def _write(target: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(target, rest) :]
