"""The journal's tables, how its SQLite file is opened, and the one door for SQLite's errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from llava_ollama.batch.work import State
from llava_ollama.errors import LlavaOllamaError, NotEnoughSpace, UsageProblem

if TYPE_CHECKING:
    import sqlite3

VERSION = 1
FILE = "journal.sqlite3"
STATES: tuple[State, ...] = ("pending", "retry", "done", "failed", "skipped", "gone")
"""In the database a state is its place in this; the first two are unfinished."""
CODE = {state: code for code, state in enumerate(STATES)}
_BUSY_SECONDS = 30.0

# Counts are kept by triggers, so that no count is ever more than one row away from the truth and
# `status` reads some rows instead of a million. `truncated` is an answer cut off at its length.
_TALLY = "ask, state, kind, host, truncated"
_ADD = f"""  INSERT INTO tally({_TALLY}, n, tokens, seconds)
    VALUES (new.ask, new.state, new.error_kind, new.host, new.finish = 'length',
            1, new.tokens, new.seconds)
    ON CONFLICT DO UPDATE SET n = n + 1, tokens = tokens + excluded.tokens,
                              seconds = seconds + excluded.seconds;"""  # noqa: S608 - constants
_TAKE = """UPDATE tally SET n = n - 1, tokens = tokens - old.tokens, seconds = seconds - old.seconds
    WHERE ask = old.ask AND state = old.state AND kind = old.error_kind AND host = old.host
          AND truncated = (old.finish = 'length');"""
_TABLES = f"""
CREATE TABLE run(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE ask(
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, ask TEXT NOT NULL,
    model_digest TEXT NOT NULL, preparation INTEGER NOT NULL,
    own INTEGER NOT NULL  -- asked only of the items that brought it with them
);
CREATE TABLE item(
    id INTEGER PRIMARY KEY, path BLOB NOT NULL, custom_id BLOB NOT NULL, offset INTEGER NOT NULL,
    own INTEGER NOT NULL, crashes INTEGER NOT NULL DEFAULT 0,
    size INTEGER, mtime_ns INTEGER, sha256 BLOB, width INTEGER, height INTEGER,
    UNIQUE(path, custom_id, offset)
);
CREATE INDEX same ON item(sha256) WHERE sha256 IS NOT NULL;
CREATE TABLE host(
    id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, level INTEGER, tokens_per_s REAL
);
CREATE TABLE answer(
    item INTEGER NOT NULL, ask INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, retry_at REAL,
    text TEXT NOT NULL DEFAULT '', finish TEXT NOT NULL DEFAULT '',
    tokens INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
    host INTEGER NOT NULL DEFAULT 0,
    error_kind TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '', copied_from INTEGER,
    PRIMARY KEY(item, ask)
) WITHOUT ROWID;
CREATE INDEX unfinished ON answer(item, ask) WHERE state < 2;
CREATE TABLE settled(slot INTEGER PRIMARY KEY, serial INTEGER NOT NULL);
CREATE TABLE tally(
    ask INTEGER, state INTEGER, kind TEXT, host INTEGER, truncated INTEGER,
    n INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY({_TALLY})
) WITHOUT ROWID;
CREATE TRIGGER counted AFTER INSERT ON answer BEGIN {_ADD} END;
CREATE TRIGGER recounted AFTER UPDATE ON answer BEGIN {_TAKE} {_ADD} END;
PRAGMA user_version = {VERSION};
"""


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """Return a connection to the journal `path`; a writable one makes the tables it lacks.

    Raises:
        UsageProblem: a newer version of this program has written it.
        LlavaOllamaError: it cannot be opened.
    """
    with door(path):
        return _connect(path, writable=writable)


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    import sqlite3

    connection = _opened(path, "rwc" if writable else "ro")
    try:
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        if not _version(connection, path) and writable:
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
    except (sqlite3.Error, UsageProblem):
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise UsageProblem(
            f"the journal `{path}` is of version {version}, and this program knows {VERSION}",
            hint="Use the newer llava-ollama that wrote it: `pip install -U llava-ollama`",
        )
    return version


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    """Connect; a folder that cannot be written has no place for SQLite's shared memory.

    Then no other process writes there either, and the file alone is read.
    """
    import sqlite3

    alone = mode == "ro" and not os.access(path.parent, os.W_OK)
    if alone and not path.with_name(path.name + "-wal").exists():
        mode = "ro&immutable=1"
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
    return sqlite3.connect(
        uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


@contextmanager
def door(path: Path) -> Iterator[None]:
    """Tell SQLite's errors as ours; what was committed before is safe in each case."""
    import sqlite3

    try:
        yield
    except sqlite3.DatabaseError as exc:
        raise translated(exc, path) from exc


def translated(exc: BaseException, path: Path) -> LlavaOllamaError:
    """Return the error that says what an error of SQLite means for the journal `path`."""
    import sqlite3

    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return NotEnoughSpace(
            f"the disk is full: the journal `{path}` cannot be written",
            hint="Free some space and run the same command again; every answer in it is safe",
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return LlavaOllamaError(
            f"the journal `{path}` cannot be opened for this: {exc}",
            hint="Check the permissions of the run's folder",
        )
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        return LlavaOllamaError(
            f"the journal `{path}` is damaged: {exc}",
            hint=f"Save what is readable by `sqlite3 {path} .recover`, or begin a new run",
        )
    return LlavaOllamaError(
        f"the journal `{path}` cannot be used: {exc}",
        hint="Check the disk, then run the same command again; every answer in it is safe",
    )
