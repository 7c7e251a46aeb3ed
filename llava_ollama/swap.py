"""Put a model under a name so that at every instant the name answers with the old or the new one.

The new model is made under a temporary name. Then: copy the old one to a backup name, copy the new
one onto the real name, delete the backup, delete the temporary. In this order no blob is orphaned
and no temporary name stays in the model's `parent_model`. The one gap is inside the daemon: `copy`
truncates a manifest before it writes it, so a daemon that is killed in that instant leaves an
*empty* manifest. That cannot be deleted, but it can be written over.

Every name, and every step that touches the real one, is written down before it is made. Whoever
takes the lock next, after a kill, settles what the record says.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Literal

from llava_ollama import locks, presence
from llava_ollama.daemon import Daemon, full_name
from llava_ollama.errors import (
    DaemonTimeout,
    LlavaOllamaError,
    ModelConflict,
    UsageProblem,
)
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.settings import same_daemon_key

Phase = Literal["", "place", "replace", "done"]
"""How far an exchange has come: nothing touched, onto a free or broken name, onto a good model
that has a backup, or through."""
PREFIX = "llava-ollama-"
"""What every temporary and backup name begins with."""
_GRACE = 0.3
"""Seconds for the daemon to finish a request that we have hung up on; `copy` takes milliseconds,
and `create` stops at its next status line."""
_TEMPORARY, _BACKUP = (re.compile(f"{PREFIX}{kind}-[0-9a-f]{{12}}") for kind in ("new", "old"))


class Exchange:
    """One exchange under way: a temporary name to fill, and the way onto the real name."""

    def __init__(
        self, daemon: Daemon, records: Records, record: dict[str, str], locked: ExitStack
    ) -> None:
        self.record = record
        self._daemon = daemon
        self._records = records
        self._locked = locked
        self._alone = False

    @property
    def temporary(self) -> str:
        """The name under which the new model is to be made and checked."""
        return self.record["temporary"]

    def alone(self, reporter: Reporter) -> None:
        """Keep our other processes from changing this daemon until the exchange is over.

        To be called when the blobs are there: sending them takes minutes, the rest seconds.
        """
        if not self._alone:
            told = f"another install into {self._daemon.host} is under way; waiting for it"
            waiting = _telling(reporter, told)
            self._locked.enter_context(_alone(self._daemon, self._records, waiting))
            self._alone = True

    def put_in_place(self, *, replace: bool, damaged: bool = False) -> None:
        """Move the temporary model onto the real name, whose model was seen `damaged` before.

        Raises:
            ModelConflict: somebody took the name meanwhile, and `replace` is not set.
            ModelBroken: the model that has the name cannot be read, and could be before.
        """
        daemon, name, backup = self._daemon, self.record["name"], self.record["backup"]
        phase: Phase = "place"
        if _readable(daemon, name, damaged=damaged):
            if not replace:
                raise ModelConflict(
                    f"`{name}` was installed by somebody else meanwhile",
                    hint="Look at it with `llava-ollama show`, or replace it with `--force`",
                )
            daemon.copy(name, backup)
            presence.made(daemon, backup)
            phase = "replace"
        presence.made(daemon, self.temporary)
        self._note(phase)
        daemon.copy(self.temporary, name)
        presence.made(daemon, name)
        self._note("done")

    def close(self, reporter: Reporter, *, forget: bool = True) -> None:
        """Settle the exchange; a failure of that is told, and must not hide another error."""
        try:
            settle(self._daemon, self.record)
        except LlavaOllamaError as exc:
            reporter.note(
                f"what the install of `{self.record['name']}` made on the way is still there, "
                f"since {exc.message}; the next install or remove clears it"
            )
            return
        if forget:
            self._records.drop("pending", *_key(self.record))

    def _note(self, phase: Phase) -> None:
        self.record["phase"] = phase
        self._records.put("pending", *_key(self.record), record=self.record)


@contextmanager
def exclusive(
    daemon: Daemon, records: Records, name: str, reporter: Reporter
) -> Iterator[Exchange]:
    """Hold the name `name` for an exchange; on any way out but success the old model is back."""
    key = (daemon.key, full_name(name))
    waiting = _telling(reporter, f"another install of `{name}` is under way; waiting for it")
    with ExitStack() as locked:
        locked.enter_context(locks.locked(records.lock_file("pending", *key), waiting=waiting))
        left = records.get("pending", *key)
        if left and _valid(daemon, left, reporter):
            with _alone(daemon, records):
                settle(daemon, left)
        token = secrets.token_hex(6)
        record = {
            "host": daemon.key,
            "name": name,
            "temporary": f"{PREFIX}new-{token}",
            "backup": f"{PREFIX}old-{token}",
            "phase": "",
        }
        records.put("pending", *key, record=record)
        exchange = Exchange(daemon, records, record, locked)
        try:
            yield exchange
        except BaseException as exc:
            if exc.__cause__ is not None or not isinstance(exc, LlavaOllamaError):
                time.sleep(_GRACE)
            # A daemon that was silent for too long may yet finish: then the record is kept.
            exchange.close(reporter, forget=not isinstance(exc, DaemonTimeout))
            raise
        # The model is in place: what is left to clear is no reason to call that a failure.
        exchange.close(reporter)


def recover(daemon: Daemon, records: Records, reporter: Reporter = SILENT) -> list[str]:
    """Settle what killed installs left on this daemon; return the names that they were for."""
    settled = []
    for record in records.all("pending"):
        if not _valid(daemon, record, reporter):
            continue
        key = _key(record)
        with locks.if_free(records.lock_file("pending", *key)) as free:
            # Read again under the lock: its writer may have finished in between.
            current = records.get("pending", *key) if free else None
            if current and _valid(daemon, current, reporter):
                with _alone(daemon, records):
                    settle(daemon, current)
                records.drop("pending", *key)
                settled.append(record["name"])
    return settled


def settle(daemon: Daemon, record: dict[str, str]) -> None:
    """Finish an exchange that is through, take any other one back, and remove the names beside."""
    name, temporary, backup = record["name"], record["temporary"], record["backup"]
    replacing, placing = (record.get("phase") == phase for phase in ("replace", "place"))
    beside = [backup, temporary]
    if replacing:
        states = [presence.patiently(daemon, one) for one in (backup, name, temporary)]
        if states[0] == "good" and not presence.same(daemon, backup, name):
            # A third model there is the user's own, made after a kill.
            if states[1] != "good" or presence.same(daemon, temporary, name):
                daemon.copy(backup, name)
                presence.made(daemon, name)
            elif states[2] == "broken":  # then nobody can say whether it is a third one
                beside.remove(backup)
        elif states[0] == "broken":  # it was whole before, so it may be again: `doctor` names it
            beside.remove(backup)
    # A name that was free before: only what this exchange has put there may go.
    elif placing and (
        presence.patiently(daemon, name) != "good" or presence.same(daemon, temporary, name)
    ):
        presence.remove(daemon, name)
    for other in beside:
        presence.remove(daemon, other)


def remove(daemon: Daemon, name: str, records: Records | None = None) -> None:
    """Delete a model, also one whose manifest is empty; one that is not there is no error.

    With `records`, an install by another process is not disturbed.
    """
    with _alone(daemon, records) if records else nullcontext():
        presence.remove(daemon, name)


def _telling(reporter: Reporter, message: str) -> Callable[[], None]:
    return lambda: reporter.note(message)


@contextmanager
def _alone(
    daemon: Daemon, records: Records, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Keep our other processes from changing this daemon.

    `DELETE` takes away every blob that no manifest names *yet*, so also those that a `create`
    under way has found or made, and while it does so other models' `show` may fail.
    """
    with locks.locked(records.lock_file("pending", daemon.key), waiting=waiting):
        yield


def _readable(daemon: Daemon, name: str, *, damaged: bool) -> bool:
    """Return whether `name` is a whole model; a broken one must have been seen as `damaged`.

    Otherwise one failed request would be enough to write over a good model without a backup.
    """
    found = presence.patiently(daemon, name)
    if found == "broken" and not damaged:
        return bool(daemon.show(name))  # raises, if it is so still
    return found == "good"


def _key(record: dict[str, str]) -> tuple[str, str]:
    return record["host"], full_name(record["name"])


def _valid(daemon: Daemon, record: dict[str, str], reporter: Reporter) -> bool:
    """Return whether a record is one of ours for this daemon; a strange one may delete nothing."""
    get = record.get
    try:
        full_name(get("name", ""))
        ours = _TEMPORARY.fullmatch(get("temporary", "")) and _BACKUP.fullmatch(get("backup", ""))
    except UsageProblem:
        ours = None
    if not ours:
        reporter.note("a record of an install in the state folder is damaged; it is ignored")
    return bool(ours) and same_daemon_key(get("host", "")) == daemon.key
