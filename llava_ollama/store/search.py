"""Which folder is this daemon's? Never guessed: a wrong one would be written to, and believed.

Reading only (`find`): `/api/show` tells where the blobs of an installed model are, and every model
in `/api/tags` has the sha256 and the time of its manifest file, to the nanosecond. A container may
have a folder of the same path and even the same models; not written in the same instants.

An empty daemon tells nothing, so a small blob in the folder asks it (`prove`). It never goes
through the API, where it would stay.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llava_ollama import locks
from llava_ollama.daemon import Daemon, Listed
from llava_ollama.errors import DaemonError, ModelBroken, ModelNotInstalled
from llava_ollama.records import Records
from llava_ollama.settings import is_loopback
from llava_ollama.store import manifests
from llava_ollama.store.folder import NoStore, Store

_PROBE_SIZE = 32
_ATTEMPTS = 3
"""Looks at a daemon that is being written to: its list and its folder must be of one moment."""


def find(daemon: Daemon, candidates: Iterable[Path]) -> Store | NoStore:
    """Return the daemon's store, reading only: its own word first, then the `candidates`.

    Raises:
        DaemonUnreachable: nobody is there to be asked.
    """
    if not is_loopback(daemon.host):
        return _elsewhere(daemon)
    places = list(dict.fromkeys(candidates))
    told: Path | None = None
    for _ in range(_ATTEMPTS):
        models = daemon.models()
        if not models:
            return _nothing_to_compare(places)
        told = _told(daemon, models)
        for folder in dict.fromkeys([told, *places] if told else places):
            if _has_all(folder, models):
                return Store(folder)
        if daemon.models() == models:
            break
    return _not_here(daemon, told) if told else _untold(daemon)


def prove(daemon: Daemon, candidates: Iterable[Path], records: Records) -> Store | NoStore:
    """Return the store that a daemon without models has, by a blob that it is asked for.

    Raises:
        LlavaOllamaError: the state folder cannot be written; then nothing else was.
    """
    if not is_loopback(daemon.host):
        return _elsewhere(daemon)
    with locks.locked(_lock(records)):
        _clear(records)
        return _prove(daemon, candidates, records)


def _prove(daemon: Daemon, candidates: Iterable[Path], records: Records) -> Store | NoStore:
    places = [folder for folder in dict.fromkeys(candidates) if _has_blobs(folder)]
    for folder in places:
        if Store(folder).writable and _sees(daemon, Store(folder), records):
            return Store(folder)
    reasons = [reason for folder in places if (reason := Store(folder).not_writable)]
    if reasons:
        return NoStore(reasons[0], "Run it with `sudo -E` to link instead of copying")
    return NoStore(
        f"the models folder of the daemon at {daemon.host} is not one of those known here",
        "Name it with `OLLAMA_MODELS` to link instead of uploading",
    )


def recover(records: Records) -> None:
    """Remove the probes that killed processes left behind; each was written down before."""
    if any(records.all("probe")):
        with locks.if_free(_lock(records)) as free:  # else a live process is asking
            if free:
                _clear(records)


def _lock(records: Records) -> Path:
    return records.lock_file("probe", "all")


def _clear(records: Records) -> None:
    for record in list(records.all("probe")):
        _remove(Path(record.get("path", "")), records)


def _remove(path: Path, records: Records) -> None:
    """Remove a probe and its record; one that is another user's stays known until that may be."""
    with suppress(OSError):
        if _is_probe(path):
            path.unlink(missing_ok=True)
        records.drop("probe", str(path))


def _sees(daemon: Daemon, store: Store, records: Records) -> bool:
    """Whether a file that appears in the store, and goes again, does so for the daemon as well."""
    content = secrets.token_bytes(_PROBE_SIZE)
    digest = hashlib.sha256(content).hexdigest()
    path = store.blob(digest)
    records.put("probe", str(path), record={"path": str(path)})
    try:
        store.put(digest, lambda file: _write(file, content))
        seen = daemon.has_blob(digest)
    except OSError:
        seen = False
    finally:
        _remove(path, records)
    return seen and not daemon.has_blob(digest)


def _write(descriptor: int, content: bytes) -> None:
    os.write(descriptor, content)


def _is_probe(path: Path) -> bool:
    """Whether the file is what its name says, of a probe's size: nothing else is ever removed.

    Raises:
        OSError: that cannot be told.
    """
    try:
        if path.is_symlink() or path.stat().st_size != _PROBE_SIZE:
            return False
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return path.parent.name == "blobs" and path.name == f"sha256-{digest}"


def _told(daemon: Daemon, models: Iterable[Listed]) -> Path | None:
    """Return the models folder as the daemon writes it; on its machine, with its eyes."""
    for model in models:
        try:
            folder = daemon.models_folder(model.name)
        except (ModelBroken, ModelNotInstalled, DaemonError):
            continue
        if folder is not None and folder.is_absolute():
            return folder
    return None


def _has_all(folder: Path, models: Iterable[Listed]) -> bool:
    """Whether the folder's manifests are the very files that the daemon lists."""
    root = folder / "manifests"
    try:
        found = dict(manifests.below(root))
    except OSError:
        return False
    return all(_is_listed(found.get(model.name), model) for model in models)


def _is_listed(path: Path | None, model: Listed) -> bool:
    if path is None:
        return False
    manifest = manifests.read(path, model.name)
    return (manifest.digest, manifest.modified_ns) == (model.manifest_digest, model.modified_ns)


def _elsewhere(daemon: Daemon) -> NoStore:
    return NoStore(
        f"the daemon at {daemon.host} is on another machine, or reached as if it were",
        "Run this program on that machine, with `--host 127.0.0.1`, to link instead of uploading",
    )


def _nothing_to_compare(places: Iterable[Path]) -> NoStore:
    there = tuple(folder for folder in places if _has_blobs(folder))
    return NoStore(
        "the daemon has no model yet that shows which folder is its own",
        "Name its models folder with `OLLAMA_MODELS`",
        unproven=there,
    )


def _untold(daemon: Daemon) -> NoStore:
    """Say it of a daemon that can read none of its models."""
    return NoStore(
        f"no model at {daemon.host} says in which folder it is, and the folders that are known "
        "here have others",
        "Name the daemon's models folder with `OLLAMA_MODELS`, or install a model first",
    )


def _not_here(daemon: Daemon, folder: Path) -> NoStore:
    where = f"its models in `{folder}`, "
    if _is_hidden(folder):
        return NoStore(
            f"the daemon at {daemon.host} keeps {where}which this user cannot read",
            "Run it with `sudo -E` to link instead of uploading",
        )
    return NoStore(
        f"the daemon at {daemon.host} keeps {where}which is not on this machine: "
        "it runs in a container, or behind a tunnel",
        "Run this program where the daemon runs, or name the folder that both share with "
        "`OLLAMA_MODELS`, to link instead of uploading",
    )


def _has_blobs(folder: Path) -> bool:
    try:
        return (folder / "blobs").is_dir()
    except OSError:  # a folder above it may not be searched
        return False


def _is_hidden(folder: Path) -> bool:
    """Whether the folder is there, but not for this user."""
    try:
        (folder / "manifests").stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(folder / "manifests", os.R_OK | os.X_OK)
