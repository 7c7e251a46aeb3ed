"""Upload: through the API, to any daemon, wherever its store is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from llava_ollama.daemon import Daemon
from llava_ollama.ledger import Identity, Ledger
from llava_ollama.progress import Reporter
from llava_ollama.transfer.interface import THERE, Blob, Brought, Cost
from llava_ollama.transfer.sources import changed, opened, wrong

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Upload:
    """Sends files to a daemon."""

    daemon: Daemon
    ledger: Ledger
    name: Literal["upload"] = "upload"

    def why_not(self, blob: Blob) -> str | None:
        """Return None: every daemon takes uploads."""
        del blob
        return None

    def cost(self, blob: Blob) -> Cost:
        """Return one reading and one writing; a file still on the Hub is written here as well."""
        if blob.path is None:
            return Cost(read=blob.size, written=2 * blob.size, fetched=blob.size)
        return Cost(read=blob.size, written=blob.size)

    def bring(self, blob: Blob, reporter: Reporter) -> Brought:
        """Send the file, unless the daemon has it."""
        if self.daemon.has_blob(blob.sha256):
            return THERE
        task = f"send {blob.sha256[:12]}"
        with opened(blob) as file:
            before = Identity.of(file.fileno())
            if before.size != blob.size:
                raise wrong(blob)
            reporter.started(task, blob.size)
            try:
                chunks = _Chunks(lambda: self._chunks(blob, file, before), task, reporter)
                self.daemon.upload(blob.sha256, blob.size, chunks)
            finally:
                reporter.finished(task)
        return Brought("upload", read=blob.size, written=blob.size)

    def settle(self, blobs: Sequence[Blob], reporter: Reporter, *, registered: bool) -> None:
        """Do nothing: the daemon looks after its own copy."""

    def _chunks(self, blob: Blob, file: BinaryIO, before: Identity) -> Iterator[bytes]:
        """Yield the file's bytes; its last ones only when all are known to be the blob's.

        The daemon keeps what has another digest, as an orphan that only itself removes. An upload
        that breaks off leaves nothing. So an unknown file is read once, not twice.
        """
        assert blob.path is not None  # noqa: S101 - `opened` has seen to it
        known = self.ledger.known(blob.path)
        digest = None if known and known.sha256 == blob.sha256 else hashlib.sha256()
        held, sent = b"", file.seek(0)
        while chunk := file.read(_CHUNK):
            if digest is not None:
                digest.update(chunk)
            if held:
                yield held
            held, sent = chunk, sent + len(chunk)
        if Identity.of(file.fileno()) != before or sent != blob.size:
            raise changed(blob)
        if digest is not None and digest.hexdigest() != blob.sha256:
            raise wrong(blob)
        if digest is None and known is not None and known.identity != before:
            raise changed(blob)
        yield held
        if digest is not None:
            self.ledger.remember(blob.sha256, before)


@dataclass
class _Chunks:
    """What is sent, from its beginning each time that it is gone through; a reporter is told."""

    begin: Callable[[], Iterator[bytes]]
    task: str
    reporter: Reporter
    begun: bool = False

    def __iter__(self) -> Iterator[bytes]:
        if self.begun:
            self.reporter.restarted(self.task)
        self.begun = True
        for chunk in self.begin():
            yield chunk
            self.reporter.advanced(self.task, len(chunk))
