"""Put a model under a name so that at every instant the name answers with the old or the new one.

The new model is made under a temporary name. Then: copy the old one to a backup name, copy the new
one onto the real name, delete the backup, delete the temporary. In this order no blob is orphaned
and no temporary name stays in the model's `parent_model`. The one gap is inside the daemon: `copy`
truncates a manifest before it writes it, so a daemon that is killed in that instant leaves an
*empty* manifest. That cannot be deleted, but it can be copied over.

Every name is written down before it is made. Whoever takes the lock next, after a kill, settles
what the record says.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from llava_ollama import locks
from llava_ollama.daemon import Daemon, full_name
from llava_ollama.errors import ModelBroken, ModelConflict, ModelNotInstalled
from llava_ollama.progress import Reporter
from llava_ollama.records import Records

State = Literal["good", "broken", "absent"]
PREFIX = "llava-ollama-"
"""What every temporary and backup name begins with."""


class Exchange:
    """One exchange under way: a temporary name to fill, and the way onto the real name."""

    def __init__(self, daemon: Daemon, record: dict[str, str]) -> None:
        self.temporary = record["temporary"]
        self._daemon = daemon
        self._record = record

    def put_in_place(self, *, replace: bool) -> None:
        """Move the temporary model onto the real name.

        Raises:
            ModelConflict: somebody took the name meanwhile, and `replace` is not set.
        """
        daemon, name, backup = self._daemon, self._record["name"], self._record["backup"]
        daemon.show(self.temporary)
        if state(daemon, name) == "good":
            if not replace:
                raise ModelConflict(
                    f"`{name}` was installed by somebody else meanwhile",
                    hint="Look at it with `llava-ollama show`, or replace it with `--force`",
                )
            daemon.copy(name, backup)
        daemon.copy(self.temporary, name)
        daemon.show(name)
        for other in (backup, self.temporary, *self._record["leftover"].split()):
            _remove(daemon, other, donors=[name])


@contextmanager
def exclusive(
    daemon: Daemon, records: Records, name: str, reporter: Reporter
) -> Iterator[Exchange]:
    """Hold the name `name` for an exchange; on any way out but success the old model is back."""
    key = (daemon.host, full_name(name))

    def waiting() -> None:
        reporter.note(f"another install of `{name}` is under way; waiting for it")

    with locks.locked(records.lock_file("pending", *key), waiting=waiting):
        left = records.get("pending", *key)
        leftover = settle(daemon, left) if left else []
        token = secrets.token_hex(6)
        record = {
            "host": daemon.host,
            "name": name,
            "temporary": f"{PREFIX}new-{token}",
            "backup": f"{PREFIX}old-{token}",
            "leftover": " ".join(leftover),
        }
        records.put("pending", *key, record=record)
        try:
            yield Exchange(daemon, record)
        except BaseException:
            _close(records, key, record, settle(daemon, record))
            raise
        records.drop("pending", *key)


def recover(daemon: Daemon, records: Records) -> list[str]:
    """Settle what killed installs left on this daemon; return the names that they were for."""
    settled = []
    for record in records.all("pending"):
        if record.get("host") != daemon.host or "name" not in record:
            continue
        key = (daemon.host, full_name(record["name"]))
        with locks.if_free(records.lock_file("pending", *key)) as free:
            # Read again under the lock: its writer may have finished in between.
            if free and (current := records.get("pending", *key)) is not None:
                _close(records, key, current, settle(daemon, current))
                settled.append(record["name"])
    return settled


def settle(daemon: Daemon, record: dict[str, str]) -> list[str]:
    """Bring a name back to a whole model, or to none, and remove the names beside it.

    Returns:
        The names with an empty manifest for which the daemon has no whole model to copy over
        them; the next install has one.
    """
    name, temporary, backup = record["name"], record["temporary"], record["backup"]
    here = state(daemon, name)
    if here != "good" and state(daemon, backup) == "good":
        daemon.copy(backup, name)
        here = "good"
    beside = [backup, temporary, *record.get("leftover", "").split()]
    unwanted = beside if here == "good" else [name, *beside]
    donors = [name, *beside]
    return [other for other in unwanted if not _remove(daemon, other, donors=donors)]


def state(daemon: Daemon, name: str) -> State:
    """Return whether `name` is a model that can be shown, one with a broken manifest, or none."""
    try:
        daemon.show(name)
    except ModelNotInstalled:
        return "absent"
    except ModelBroken:
        return "broken"
    return "good"


def remove(daemon: Daemon, name: str) -> None:
    """Delete a model, also one whose manifest is empty.

    Raises:
        ModelBroken: its manifest is empty and the daemon has no whole model to copy over it.
    """
    if not _remove(daemon, name, donors=[]):
        raise ModelBroken(
            f"`{name}` has an empty manifest, which the daemon cannot delete",
            hint="Install it again; that replaces the manifest",
        )


def _close(
    records: Records, key: tuple[str, str], record: dict[str, str], leftover: list[str]
) -> None:
    """Forget a settled record, or keep it for the names that could not be removed yet."""
    if leftover:
        records.put("pending", *key, record={**record, "leftover": " ".join(leftover)})
    else:
        records.drop("pending", *key)


def _remove(daemon: Daemon, name: str, *, donors: list[str]) -> bool:
    """Delete `name` if it is there; return False where it cannot be deleted yet.

    `DELETE` of an empty manifest fails, so a whole model is copied over it first.
    """
    here = state(daemon, name)
    if here == "absent":
        return True
    if here == "broken":
        candidates = [d for d in donors if d != name] + [m.name for m in daemon.models()]
        donor = next((d for d in candidates if state(daemon, d) == "good"), None)
        if donor is None:
            return False
        daemon.copy(donor, name)
    daemon.delete(name)
    return True
