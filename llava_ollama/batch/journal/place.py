"""Where a run's journal lies, and that one process has it.

SQLite's WAL needs memory shared by all who have the file open, and locks that hold. Network file
systems promise neither (https://sqlite.org/wal.html), so for a run on one the journal goes to this
machine's state folder, and a small file in the run says where.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_ollama import locks, whole
from llava_ollama.batch.journal.database import FILE
from llava_ollama.errors import LlavaOllamaError, UsageProblem

POINTER = "journal.json"
LOCK = "journal.lock"
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gfs2", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "ocfs2", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs"}
    | {f"fuse.{kind}" for kind in ("ceph", "davfs2", "gcsfuse", "glusterfs", "rclone", "s3fs")}
    | {"fuse.sshfs", "fuse.juicefs"}
)
_LARGEST = 1 << 16


def network(path: Path, mounts: str) -> str | None:
    """Return the kind of network file system that the absolute `path` is on, or None.

    `mounts` is the text of `/proc/self/mountinfo`; the longest mount point above the path counts,
    and of two that are mounted at the same place the later one.
    """
    best, kind = -1, ""
    for point, found in _mounted(mounts):
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), found
    return kind if kind in _NETWORK else None


def _mounted(mounts: str) -> Iterator[tuple[Path, str]]:
    """Yield mount points and their kinds; blanks stand there as octal numbers."""
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) > 4:  # noqa: PLR2004 - the fifth is the mount point, see proc(5)
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
            yield Path(point), after.split(" ")[0]


def current_mounts() -> str:
    """Return what is mounted, as Linux tells; empty elsewhere."""
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def find(run: Path) -> Path:
    """Return the folder in which the journal of an existing run lies.

    Raises:
        UsageProblem: `run` is no run, or its journal is on another machine.
    """
    if (run / FILE).exists():
        return run
    pointer = _pointer(run)
    if pointer is None:
        raise UsageProblem(
            f"`{run}` is not a run: it has no journal",
            hint="Begin one: `llava-ollama batch PICTURES PROMPT -o RUN`",
        )
    folder = Path(pointer.get("folder", ""))
    if not (folder / FILE).exists():
        raise UsageProblem(
            f"the journal of `{run}` is `{folder}` on the machine `{pointer.get('machine')}`,"
            " and not here",
            hint="Go on with the run there, or copy that folder's files into the run",
        )
    return folder


def make(run: Path, state: Path, *, mounts: str | None = None) -> tuple[Path, str | None]:
    """Return the folder of the run's journal, made where needed, and the network kind if any.

    Raises:
        UsageProblem: the journal is on another machine, or `run` is a file.
        LlavaOllamaError: the folder cannot be made.
    """
    run = run.absolute()
    try:
        run.mkdir(parents=True, exist_ok=True)
        if (run / FILE).exists() or _pointer(run) is not None:
            return find(run), None
        kind = network(run.resolve(), current_mounts() if mounts is None else mounts)
        return (_pointed(run, state) if kind else run), kind
    except FileExistsError as exc:
        raise UsageProblem(
            f"`{run}` is a file, and a run is a folder", hint="Name another with `-o`"
        ) from exc
    except OSError as exc:
        raise LlavaOllamaError(
            f"the run `{run}` cannot be made: {(exc.strerror or type(exc).__name__).lower()}",
            hint="Mend the permissions of the folder above it, or name another with `-o`",
        ) from exc


def _pointed(run: Path, state: Path) -> Path:
    """Make a folder for the journal in the state folder, and the file that points there."""
    key = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
    folder = state / "journals" / key
    folder.mkdir(parents=True, exist_ok=True)
    with whole.replacing(run / POINTER) as file:
        file.write(json.dumps({"folder": str(folder), "machine": platform.node()}).encode())
    return folder


def _pointer(run: Path) -> dict[str, str] | None:
    try:
        with (run / POINTER).open("rb") as file:
            value = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else None


def under_way(run: Path) -> bool:
    """Whether a process goes on with the run at this moment."""
    with locks.if_free(find(run) / LOCK) as free:
        return not free


@contextmanager
def alone(run: Path, folder: Path) -> Iterator[None]:
    """Hold the run, so that no second process goes on with it at the same time.

    Raises:
        UsageProblem: another process has it.
    """
    with locks.if_free(folder / LOCK) as free:
        if not free:
            raise UsageProblem(
                f"the run `{run}` is under way in another process",
                hint=f"See how far it is: `llava-ollama status {run}`",
            )
        yield
