"""The ledger: "this file, unchanged since, has this sha256". The owner of sqlite3.

5 GB are hashed once, not at every install. A file is known by device, inode, size and mtime; ctime
cannot be among them, since every link to it and every unlink changes it. The ledger is a cache: a
damaged one is made anew, one that cannot be used costs time and nothing else, and whoever must be
sure (`verify`, `repair`) does not ask it.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_ollama import locks
from llava_ollama.errors import ChecksumMismatch, LlavaOllamaError, StoreError
from llava_ollama.progress import Reporter

if TYPE_CHECKING:
    import sqlite3

LEDGER = "ledger.sqlite3"
"""Its name in the cache folder."""
_BUSY_SECONDS = 10.0
_TABLE = """CREATE TABLE IF NOT EXISTS files (
    device TEXT, inode TEXT, size TEXT, mtime_ns TEXT, sha256 TEXT, seal TEXT,
    PRIMARY KEY (device, inode)
) WITHOUT ROWID"""
_TRIES = 4
_SECOND = 10**9
_TICK = _SECOND // 50
"""The kernel's clock for mtimes goes in steps of 1 to 10 ms."""


@dataclass(frozen=True)
class Identity:
    """What tells one state of one file from every other. `size` in bytes."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path | int) -> Identity:
        """Return the identity of the file at a path (links are followed) or behind a descriptor.

        Raises:
            OSError: there is none.
        """
        found = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The columns that it is stored as; texts, as an inode may exceed SQLite's integers."""
        return str(self.device), str(self.inode), str(self.size), str(self.mtime_ns)


@dataclass(frozen=True)
class Digested:
    """A file's sha256 (hex digits), its size in bytes, and the state of it that has them."""

    sha256: str
    size: int
    identity: Identity


class Ledger:
    """The digests known to one ledger file; threads and processes may share it."""

    def __init__(self, path: Path, *, rehash: bool = False) -> None:
        self._path = path
        self._rehash = rehash
        self._usable = True
        self._hashed: set[Identity] = set()

    def known(self, path: Path) -> Digested | None:
        """Return what is known of the file as it is now, without reading it.

        To one that ignores the past (`rehash`) only what it has hashed itself is known.

        Raises:
            OSError: it is not there.
        """
        identity = Identity.of(path)
        ignored = self._rehash and identity not in self._hashed
        sha256 = None if ignored else self._look_up(identity)
        return Digested(sha256, identity.size, identity) if sha256 else None

    def digest(self, path: Path, reporter: Reporter) -> Digested:
        """Return the file's digest, from the ledger or by reading it all.

        Raises:
            ChecksumMismatch: the file changed while it was read.
            StoreError: it cannot be read.
        """
        try:
            return self.known(path) or self._hash(path, reporter)
        except OSError as exc:
            raise StoreError(
                f"`{path}` cannot be read: {(exc.strerror or type(exc).__name__).lower()}",
                hint="Check that it is there and readable",
            ) from exc

    def hash(self, path: Path, reporter: Reporter) -> Digested:
        """Return the file's digest by reading it, whatever the ledger says; remember it.

        Raises:
            ChecksumMismatch: the file changed while it was read.
            StoreError: it cannot be read.
        """
        return Ledger(self._path, rehash=True).digest(path, reporter)

    def remember(self, sha256: str, identity: Identity) -> None:
        """Record the digest of bytes that the caller hashed and knows to be in this state."""
        self._record(identity, sha256)

    def arrived(self, path: Path, sha256: str) -> None:
        """Record the digest of a file of ours that was hashed while it was written."""
        try:
            self._record(Identity.of(path), sha256)
        except OSError:
            return

    def renew(self, path: Path, sha256: str) -> None:
        """Record the new mtime of a file that is known to have this digest.

        A daemon's `create` touches every blob that it uses, and with a hard link the source.
        Only a file that is in the ledger with this digest and size is renewed.
        """
        try:
            identity = Identity.of(path)
        except OSError:
            return
        key, size = identity.row[:2], identity.row[2]
        row = self._ask(
            "SELECT size, mtime_ns, sha256, seal FROM files WHERE device=? AND inode=?", key
        )
        if row is None or (row[0], row[2]) != (size, sha256):
            return
        if row[3] == _seal((*key, *row[:2]), sha256):
            self._record(identity, sha256)

    def _hash(self, path: Path, reporter: Reporter) -> Digested:
        from llava_ollama.weights.hashing import hash_file

        first = ""
        for _ in range(_TRIES):
            before = _at_rest(path)
            sha256, size = hash_file(path, reporter)
            after = Identity.of(path)
            if first not in {"", sha256} or not size == before.size == after.size:
                break
            if after == before:
                self._record(before, sha256)
                return Digested(sha256, size, before)
            # Another install's `create` may have touched a linked file: then its bytes are the
            # same when it is read again.
            first = sha256
        raise ChecksumMismatch(
            f"`{path}` changed while it was read",
            hint="Wait until it is complete, then run the same command again",
        )

    def _look_up(self, identity: Identity) -> str | None:
        if not _is_there(self._path):
            return None  # asking makes no ledger: a plan only reads
        row = self._ask(
            "SELECT sha256, seal FROM files WHERE device=? AND inode=? AND size=? AND mtime_ns=?",
            identity.row,
        )
        return row[0] if row and row[1] == _seal(identity.row, row[0]) else None

    def _record(self, identity: Identity, sha256: str) -> None:
        self._hashed.add(identity)
        row = (*identity.row, sha256, _seal(identity.row, sha256))
        self._ask("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", row)

    def _ask(self, question: str, values: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the first row; None also where the ledger cannot be used: all is hashed then."""
        import sqlite3

        if not self._usable:
            return None
        try:
            with closing(self._prepared()) as db:
                row = db.execute(question, values).fetchone()
        except (sqlite3.DatabaseError, OSError) as exc:
            # A lock, a full or a read-only disk is no fault of the file's, all else is.
            if not isinstance(exc, sqlite3.OperationalError | OSError) or _is_malformed(exc):
                self._rebuild()
            else:
                self._usable = False
            return None
        return row if row is None else tuple(map(str, row))

    def _prepared(self) -> sqlite3.Connection:
        import sqlite3

        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(_TABLE)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _rebuild(self) -> None:
        """Throw a damaged ledger away, unless another process has done so meanwhile."""
        import sqlite3

        self._usable = False
        try:
            with locks.locked(self._path.with_suffix(".lock")):
                try:
                    with closing(self._prepared()) as db:
                        db.execute("SELECT device, inode, size, mtime_ns, sha256, seal FROM files")
                        sound = db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                except sqlite3.DatabaseError:
                    sound = False
                if not sound:
                    for suffix in ("", "-wal", "-shm"):
                        self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except (OSError, LlavaOllamaError):
            return
        self._usable = True


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it may not be searched
        return False


def _is_malformed(exc: BaseException) -> bool:
    """Whether SQLite misses a table or a column of ours: the file is another program's."""
    import sqlite3

    return getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def _seal(row: tuple[str, ...], sha256: str) -> str:
    """Return a checksum of a row: SQLite does not notice a byte that changed within a value."""
    return hashlib.sha256("\0".join((*row, str(sha256))).encode()).hexdigest()[:16]


def _at_rest(path: Path) -> Identity:
    """Return the file's identity, once another write could no longer leave its mtime as it is.

    Two writes within one tick of the file system's clock give the same mtime; some file systems
    count whole seconds, FAT two.
    """
    identity = Identity.of(path)
    tick = _TICK if identity.mtime_ns % _SECOND else 2 * _SECOND
    age = time.time_ns() - identity.mtime_ns
    if not 0 <= age < tick:
        return identity
    time.sleep((tick - age) / _SECOND)
    return Identity.of(path)
