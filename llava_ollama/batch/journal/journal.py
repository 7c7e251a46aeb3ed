"""Goes on with a run, or begins one: the side of the journal that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from llava_ollama.batch.journal import changes, database, leases, place
from llava_ollama.batch.journal.changes import Entry
from llava_ollama.batch.journal.config import Asked, Config, differences, from_text
from llava_ollama.batch.journal.reading import Reading
from llava_ollama.batch.journal.writer import Work, Writer
from llava_ollama.batch.thumbnails import Thumbnails
from llava_ollama.errors import UsageProblem

if TYPE_CHECKING:
    import sqlite3


class Journal:
    """One run, held by this process; a context manager.

    All may be called from any thread; nothing but `flush`, `add`, `retry_failed` and the beginning
    and end waits for a disk.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        *,
        state: Path,
        add: bool = False,
        mounts: str | None = None,
    ) -> None:
        """Begin the run in the folder `run`, or go on with it.

        `add` adds questions that the run does not have yet; `mounts` is what
        `/proc/self/mountinfo` says, if not to be read.

        Raises:
            UsageProblem: the run has other questions or another model, is under way in another
                process, is on another machine, or a newer version wrote it.
            LlavaOllamaError: the journal cannot be opened.
        """
        self.run = run
        self.config = config
        self.folder, self.network = place.make(run, state, mounts=mounts)
        """Where the journal lies, and the network file system that keeps it from the run."""
        self.path = self.folder / database.FILE
        with ExitStack() as stack:
            stack.enter_context(place.alone(run, self.folder))
            db = database.connect(self.path, writable=True)
            stack.callback(db.close)
            with database.door(self.path), _transaction(db):
                self.asks = tuple(_configure(db, run, config, add=add))
                """What is asked of every picture that brings no question of its own."""
                serial = _count_crashes(db, self.folder)
            self.leases = leases.Leases(self.folder, serial)
            stack.callback(self.leases.close)
            self.thumbnails = stack.enter_context(Thumbnails(self.folder))
            """Written by the journal's writer, so that nobody waits for them."""
            self.writer = Writer(db, self.path, self.leases.sync)
            stack.callback(self.writer.close)
            self._open = stack.pop_all()
        self.reopened: Callable[[int], None] = lambda _item: None
        """Called in the writer's thread; whoever hands out work sets it."""

    def write(self, work: Work, committed: Callable[[], None] | None = None) -> None:
        """Queue one row's change; `committed` is called once the disk has it.

        Raises:
            LlavaOllamaError: an earlier write failed.
        """
        self.writer.put(work, committed=committed)

    def reopen(self, work: Work, item: int) -> None:
        """Queue a change after which an item has something to be asked again; tell `reopened`."""
        self.write(work, lambda: self.reopened(item))

    def flush(self) -> None:
        """Wait until the disk has all that was written before.

        Raises:
            LlavaOllamaError: a write failed.
        """
        self.writer.flush()

    def add(self, entries: Iterable[Entry]) -> None:
        """Note what a source finds, as it finds it, and wait until the disk has it.

        What is known and unchanged costs no write. A file that has changed is read: if its bytes
        are others, all that was answered about it is dropped and asked again.

        Raises:
            LlavaOllamaError: a write failed.
        """
        from llava_ollama.batch.journal.intake import Intake

        with Intake(self) as intake:
            for entry in entries:
                intake.put(entry)

    def retry_failed(self) -> int:
        """Make what failed pending again; return how many answers that are.

        Raises:
            LlavaOllamaError: a write failed.
        """
        counts: list[int] = []
        self.write(lambda db: counts.append(changes.retry_failed(db)))
        self.flush()
        return counts[0]

    def level(self, url: str, level: int, tokens_per_s: float) -> None:
        """Note how many requests at a time a host is given, for `status`."""
        self.write(partial(changes.put_level, url=url, level=level, tokens_per_s=tokens_per_s))

    def rate(self, rate: float) -> None:
        """Note how many questions a second are settled, for `status`."""
        self.write(partial(changes.put_rate, rate=rate))

    def reading(self) -> Reading:
        """Return a view of the run, which the caller closes."""
        return Reading(self.run)

    def connect(self) -> sqlite3.Connection:
        """Return a further connection, to read by."""
        return database.connect(self.path, writable=False)

    def close(self) -> None:
        """Write all that is queued, give back what is with a host, and let go of the run.

        Raises:
            LlavaOllamaError: a write failed.
        """
        self._open.close()
        self.writer.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        self._open.close()
        if kind is None:
            self.writer.check()


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _configure(db: sqlite3.Connection, run: Path, config: Config, *, add: bool) -> Iterator[Asked]:
    """Compare the run's questions with those of `config`, and yield what it asks from now on."""
    begun = db.execute("SELECT 1 FROM run").fetchone() is not None
    known = load_asks(db, "NOT own")
    fingerprints = {one.ask.fingerprint(one.model_digest) for one in known}
    new = [a for a in config.asks if a.fingerprint(config.model_digest) not in fingerprints]
    if begun and not add:
        for ask in new:
            raise _refused(run, differences(ask, config.model_digest, known))
        _check_model(db, run, config)
    if not begun or add:
        record = {"model": config.model, "model_digest": config.model_digest}
        db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", record.items())
    for ask in new:
        changes.add_ask(db, ask, config.model_digest)
    yield from load_asks(db, "NOT own")


def _check_model(db: sqlite3.Connection, run: Path, config: Config) -> None:
    was = dict(db.execute("SELECT key, value FROM run"))
    if was["model_digest"] != config.model_digest:
        said = f"the model was `{was['model']}` ({was['model_digest'][:12]}) and is"
        raise _refused(run, [f"{said} `{config.model}` ({config.model_digest[:12]})"])


def _refused(run: Path, different: Sequence[str]) -> UsageProblem:
    return UsageProblem(
        f"the run `{run}` was begun otherwise: {', '.join(different)}",
        hint="Go on with what it was begun with, name another run with `-o`, or add this as a"
        " further question with `--add`",
    )


def load_asks(db: sqlite3.Connection, where: str) -> list[Asked]:
    """Return the run's questions of which the SQL condition `where` is true."""
    rows = db.execute(
        "SELECT id, ask, model_digest, preparation, own FROM ask"  # noqa: S608 - ours alone
        f" WHERE {where} ORDER BY id"
    )
    return [Asked(row[0], from_text(row[1]), row[2], row[3], bool(row[4])) for row in rows]


def _count_crashes(db: sqlite3.Connection, folder: Path) -> int:
    """Count what was with a host when a process died; return the first serial that is unused."""
    settled: dict[int, int] = dict(db.execute("SELECT slot, serial FROM settled").fetchall())
    left = leases.left(folder, settled)
    changes.count_crashes(db, left)
    return 1 + max([*settled.values(), *(lease.serial for lease in left), 0])
