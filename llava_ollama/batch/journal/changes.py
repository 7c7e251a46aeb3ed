"""What may happen to a journal, each as one function over the writer's connection."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava_ollama.batch.journal.config import to_text
from llava_ollama.batch.journal.database import CODE
from llava_ollama.batch.journal.leases import Lease
from llava_ollama.batch.work import PREPARATION, Ask, ErrorKind, Outcome, Seen, State

if TYPE_CHECKING:
    import sqlite3

NO_OFFSET = -1
LARGEST = (1 << 63) - 1
"""SQLite's greatest number; a file's time may be after the year 2262, in nanoseconds beyond it."""
_RESET = (
    "state = 0, attempts = 0, retry_at = NULL, text = '', finish = '', tokens = 0, seconds = 0,"
    " host = 0, error_kind = '', error = '', copied_from = NULL"
)


@dataclass(frozen=True)
class Entry:
    """What a source found: a picture, or why something is none."""

    path: str
    """Absolute, as `os.fsdecode` gives it."""
    custom_id: str = ""
    offset: int | None = None
    """As in `Item`."""
    asks: tuple[Ask, ...] = ()
    """Its own questions; empty for those of the run."""
    size: int | None = None
    mtime_ns: int | None = None
    state: State = "pending"
    reason: str = ""
    error_kind: ErrorKind | None = None

    @property
    def key(self) -> tuple[bytes, bytes, int]:
        """What tells it from every other item of a run."""
        offset = NO_OFFSET if self.offset is None else self.offset
        return as_bytes(self.path), as_bytes(self.custom_id), offset

    @property
    def own(self) -> bool:
        """Whether a question that is added to the run later is none for it."""
        return bool(self.asks) or self.state == "failed"


def as_integer(number: int | None) -> int | None:
    """Return the number as SQLite can hold it."""
    return None if number is None else max(-LARGEST, min(number, LARGEST))


def as_bytes(text: str) -> bytes:
    """Return the bytes of a path or an id, whatever is in it."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return text.encode("utf-8", "surrogatepass")


def as_path(data: bytes) -> str:
    """Return the text that `as_bytes` was given; half a surrogate pair becomes its three bytes."""
    return os.fsdecode(data)


def as_text(text: str) -> str:
    """Return `text` as SQLite takes it: half a surrogate pair becomes a replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def put_ask(db: sqlite3.Connection, ask: Ask, digest: str, *, own: bool) -> int:
    """Return the id of a question, which is noted if it is new."""
    fingerprint = ask.fingerprint(digest)
    row = db.execute("SELECT id FROM ask WHERE fingerprint = ?", (fingerprint,)).fetchone()
    if row is None:
        row = db.execute(
            "INSERT INTO ask(fingerprint, ask, model_digest, preparation, own)"
            " VALUES (?, ?, ?, ?, ?) RETURNING id",
            (fingerprint, to_text(ask), digest, PREPARATION, own),
        ).fetchone()
    return int(row[0])


def add_ask(db: sqlite3.Connection, ask: Ask, digest: str) -> int:
    """Note a further question and have it asked of every picture that brought none of its own."""
    number = put_ask(db, ask, digest, own=False)
    db.execute("UPDATE ask SET own = 0 WHERE id = ?", (number,))
    # What is skipped or gone is so for every question.
    db.execute(
        "INSERT OR IGNORE INTO answer(item, ask, state, error)"
        " SELECT i.id, ?, iif(a.state > 3, a.state, 0), iif(a.state > 3, a.error, '')"
        " FROM item i LEFT JOIN answer a ON a.item = i.id"
        " AND a.ask = (SELECT min(ask) FROM answer WHERE item = i.id) WHERE NOT i.own",
        (number,),
    )
    return number


def add_items(
    db: sqlite3.Connection, entries: Iterable[Entry], asks: Sequence[int], digest: str
) -> None:
    """Note what a source found that was not known; what is known only gets further questions."""
    for entry in entries:
        item = _put_item(db, entry)
        own = [put_ask(db, ask, digest, own=True) for ask in entry.asks]
        if not own and not asks:
            own = [put_ask(db, Ask(""), digest, own=True)]
        state, kind = CODE[entry.state], entry.error_kind or ""
        db.executemany(
            "INSERT OR IGNORE INTO answer(item, ask, state, error_kind, error)"
            " VALUES (?, ?, ?, ?, ?)",
            [(item, ask, state, kind, as_text(entry.reason)) for ask in own or asks],
        )


def _put_item(db: sqlite3.Connection, entry: Entry) -> int:
    row = db.execute(
        "INSERT INTO item(path, custom_id, offset, own, size, mtime_ns) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING id",
        (*entry.key, entry.own, entry.size, as_integer(entry.mtime_ns)),
    ).fetchone()
    if row is None:
        row = db.execute(
            "SELECT id FROM item WHERE path = ? AND custom_id = ? AND offset = ?", entry.key
        ).fetchone()
    return int(row[0])


def put_stat(db: sqlite3.Connection, item: int, size: int | None, mtime_ns: int | None) -> None:
    """Note that a file was touched, and is the same."""
    db.execute(
        "UPDATE item SET size = ?, mtime_ns = ? WHERE id = ?", (size, as_integer(mtime_ns), item)
    )


def ask_again(db: sqlite3.Connection, item: int) -> None:
    """Forget all that was answered about a picture: its file is another."""
    db.execute("UPDATE item SET sha256 = NULL, crashes = 0 WHERE id = ?", (item,))
    db.execute(f"UPDATE answer SET {_RESET} WHERE item = ?", (item,))  # noqa: S608 - a constant


def came_back(db: sqlite3.Connection, item: int) -> None:
    """Ask again what could not be asked since the file was gone."""
    db.execute(
        f"UPDATE answer SET {_RESET} WHERE item = ? AND state = ?",  # noqa: S608 - a constant
        (item, CODE["gone"]),
    )


def retry_failed(db: sqlite3.Connection) -> int:
    """Make all that failed pending again, as if never tried; return how many answers that are.

    A line of a request file that says nothing that can be asked stays failed.
    """
    failed = (CODE["failed"],)
    db.execute(
        "UPDATE item SET crashes = 0 WHERE crashes > 0"
        " AND id IN (SELECT item FROM answer WHERE state = ?)",
        failed,
    )
    return db.execute(
        f"UPDATE answer SET {_RESET} WHERE state = ?"  # noqa: S608 - a constant
        " AND NOT (error_kind = 'request' AND attempts = 0)",
        failed,
    ).rowcount


def put_seen(db: sqlite3.Connection, seen: Seen) -> bool:
    """Note what reading found; return whether answers about another picture had to go."""
    sha256 = bytes.fromhex(seen.sha256)
    before, offset = db.execute(
        "SELECT sha256, offset FROM item WHERE id = ?", (seen.item,)
    ).fetchone()
    db.execute(
        "UPDATE item SET sha256 = ?, width = ?, height = ? WHERE id = ?",
        (sha256, seen.width, seen.height, seen.item),
    )
    if offset == NO_OFFSET:  # else these are the request file's
        put_stat(db, seen.item, seen.size, seen.mtime_ns)
    if before in {None, sha256}:
        return False
    db.execute(
        f"UPDATE answer SET {_RESET} WHERE item = ? AND state IN (?, ?)",  # noqa: S608 - constant
        (seen.item, CODE["done"], CODE["failed"]),
    )
    return True


def settle(db: sqlite3.Connection, outcome: Outcome, lease: Lease | None) -> None:
    """Note what became of a question, and that its lease is over."""
    db.execute(
        "UPDATE answer SET state = ?, attempts = ?, retry_at = ?, text = ?, finish = ?,"
        " tokens = ?, seconds = ?, host = ?, error_kind = ?, error = ?, copied_from = ?"
        " WHERE item = ? AND ask = ?",
        (
            *(CODE[outcome.state], outcome.attempts, outcome.retry_at, as_text(outcome.text)),
            *(
                outcome.finish or "",
                as_integer(outcome.tokens),
                outcome.seconds,
                host_id(db, outcome.host),
            ),
            *(outcome.error_kind or "", as_text(outcome.error), outcome.copied_from),
            *(outcome.item, outcome.ask),
        ),
    )
    if lease is not None:
        end_lease(db, lease)


def end_lease(db: sqlite3.Connection, lease: Lease) -> None:
    """Note that a slot's leases up to this one are settled."""
    db.execute("INSERT OR REPLACE INTO settled VALUES (?, ?)", (lease.slot, lease.serial))


def count_crashes(db: sqlite3.Connection, leases: Iterable[Lease]) -> None:
    """Count a crash for each picture that was with a host when a process died."""
    left = list(leases)
    for item in {lease.item for lease in left}:
        db.execute("UPDATE item SET crashes = crashes + 1 WHERE id = ?", (item,))
    for lease in left:
        end_lease(db, lease)


def host_id(db: sqlite3.Connection, url: str) -> int:
    """Return the id of a host, which is noted if it is new; 0 for none."""
    if not url:
        return 0
    row = db.execute("SELECT id FROM host WHERE url = ?", (url,)).fetchone()
    if row is None:
        row = db.execute("INSERT INTO host(url) VALUES (?) RETURNING id", (url,)).fetchone()
    return int(row[0])


def put_rate(db: sqlite3.Connection, rate: float) -> None:
    """Note how many questions a second are settled, for whoever looks on."""
    db.execute("INSERT OR REPLACE INTO run VALUES ('rate', ?)", (repr(rate),))


def put_level(db: sqlite3.Connection, url: str, level: int, tokens_per_s: float) -> None:
    """Note how many requests at a time a host is given, for whoever looks on."""
    db.execute(
        "UPDATE host SET level = ?, tokens_per_s = ? WHERE id = ?",
        (level, tokens_per_s, host_id(db, url)),
    )
