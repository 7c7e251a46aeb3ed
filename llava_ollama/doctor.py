"""What is wrong with this machine, or with what is installed on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llava_ollama import inventory, modelfile, store, swap
from llava_ollama.catalog import Catalog
from llava_ollama.daemon import Daemon, Shown
from llava_ollama.doctor_store import StoreDoctor
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.findings import Finding
from llava_ollama.ledger import Ledger
from llava_ollama.pins import Known
from llava_ollama.records import Records
from llava_ollama.settings import Settings
from llava_ollama.store import NoStore
from llava_ollama.weights.download import gigabytes

_FEW_BYTES = 6_000_000_000
"""About what the int4 pair of the 8B model takes."""


@dataclass(frozen=True)
class Doctor:
    """Examines one daemon and this machine; changes nothing."""

    daemon: Daemon
    settings: Settings
    catalog: Catalog
    records: Records
    ledger: Ledger

    def examine(self) -> Iterator[Finding]:
        """Yield findings; what the daemon would have to tell is left out when it is not there."""
        yield from self._machine()
        try:
            version = self.daemon.version()
        except LlavaOllamaError as exc:
            yield Finding("daemon", "error", exc.message, exc.hint or "")
            return
        said = "built from source" if version == "0.0.0" else version
        yield Finding("daemon", "ok", f"Ollama {said} answers at {self.daemon.host}")
        yield from self._behaviour(version)
        yield from self._models()
        yield from self._store()
        yield from self._leftovers()

    def _machine(self) -> Iterator[Finding]:
        cache, state = self.settings.cache, self.settings.state
        unwritable = _unwritable("download folder", cache, "LLAVA_OLLAMA_CACHE")
        yield unwritable or self._space("download folder", cache)
        unwritable = _unwritable("state folder", state, "LLAVA_OLLAMA_STATE")
        yield unwritable or Finding("state folder", "ok", f"{state} can be written")
        if find_spec("xllamacpp") is None:
            detail = "models run only in a daemon; `pip install xllamacpp` lets them run here too"
            yield Finding("llama.cpp", "ok", detail)
        else:
            yield Finding("llama.cpp", "ok", "models can run in this process as well")
        yield from self._downloads(cache / "downloads")

    def _downloads(self, folder: Path) -> Iterator[Finding]:
        partial = list(folder.glob("*.partial"))
        if partial:
            detail = f"{len(partial)} interrupted, {_gigabytes(partial)} kept in {folder}"
            fix = "Run the same `install` or `download` again to finish, or delete the files"
            yield Finding("downloads", "warning", detail, fix)
        names = {Path(r.get("name", "")).name for r in self.records.all("transient")}
        # Each whole file is in a folder of its own.
        whole = [path for path in folder.glob("*/*") if path.name in names and path.is_file()]
        if whole:
            detail = (
                f"{len(whole)} for an install that was interrupted, or is under way, "
                f"{_gigabytes(whole)} kept in {folder}"
            )
            fix = "Run the same `install` again: it takes up the files and removes them"
            yield Finding("downloads", "warning", detail, fix)

    def _behaviour(self, version: str) -> Iterator[Finding]:
        """Say which of Ollama's behaviours this daemon has, as far as it has shown it."""
        if any(r.get("host") == self.daemon.key for r in self.records.all("rewritten")) or (
            _rewrites(version)
        ):
            yield Finding(
                "bytes",
                "warning",
                "this daemon rewrites models at `create`: their digests are not the published ones",
                "Update Ollama to 0.34.1 or later and install again",
            )
        elif any(r.get("host") == self.daemon.key for r in self.records.all("installed")) or (
            _release(version) > (0, 0, 0)
        ):
            yield Finding("bytes", "ok", "this daemon keeps the bytes it is given")
        else:
            detail = "not known yet whether this daemon keeps the bytes it is given"
            source = " (it is built from source)" if version == "0.0.0" else ""
            yield Finding("bytes", "ok", detail + source)

    def _models(self) -> Iterator[Finding]:
        found = inventory.installed(self.daemon, self.catalog, self.records)
        ours = [model for model in found if model.ours]
        if not ours:
            fix = "llava-ollama install"
            yield Finding("models", "warning", "no model of ours is installed", fix)
        for model in ours:
            name = model.name.removesuffix(":latest")
            if model.damaged:
                fix = f"llava-ollama install … --name {name} --force"
                yield Finding("models", "error", f"`{name}` cannot be read by the daemon", fix)
            elif not model.vision:
                fix = f"llava-ollama remove {name}, then install it again"
                yield Finding("models", "error", f"`{name}` does not see pictures", fix)
            else:
                shown = self.daemon.show(name)
                yield self._template(name, shown)
                yield from self._tower(name, shown)

    def _tower(self, name: str, shown: Shown) -> Iterator[Finding]:
        """Say when a projector is run without the end of its vision tower, as far as is known."""
        sources = Known.of(self.daemon, self.catalog, self.records).source
        trained = self.catalog.vision_layers(sources(shown.sources[-1])) if shown.sources else None
        run = shown.blocks_run
        if run is None:
            return
        if trained is None:
            detail = (
                f"`{name}` is run with {run} of the {run + 1} blocks that its projector stores; how"
                " many it was trained with is not known"
            )
            fix = f"llava-ollama install … --name {name} --mend --layers N, if it was with more"
            yield Finding("vision tower", "ok", detail, fix)
        elif run < trained:
            detail = (
                f"`{name}` is run with {run} of the {trained} blocks of its vision tower, as by all"
                " engines (llama.cpp issue 25817)"
            )
            found = inventory.catalog_name(shown, self.catalog, self.records, self.daemon.key)
            what = found.replace(" ", " --quant ") or "…"
            fix = f"llava-ollama install {what} --mend, which installs it beside this one"
            yield Finding("vision tower", "warning", detail, fix)

    def _template(self, name: str, shown: Shown) -> Finding:
        if shown.template == modelfile.chat_template() or not inventory.has_catalog_files(
            shown, self.catalog, self.records, self.daemon.key
        ):
            return Finding("models", "ok", f"`{name}` sees pictures and has its chat template")
        fix = f"llava-ollama install … --name {name} --force"
        return Finding("models", "warning", f"`{name}` has another chat template than ours", fix)

    def _store(self) -> Iterator[Finding]:
        found = store.find(self.daemon, self.settings.models)
        if isinstance(found, NoStore):
            yield Finding("models folder", "ok", f"not looked into: {found.reason}", found.hint)
            return
        yield self._space("models folder", found.folder)
        yield from StoreDoctor(found, self.ledger).examine()

    def _leftovers(self) -> Iterator[Finding]:
        pending = [r for r in self.records.all("pending") if r.get("host") == self.daemon.key]
        for record in pending:
            yield Finding(
                "leftovers",
                "warning",
                f"an install of `{record.get('name')}` was interrupted, or is under way",
                "Run any `llava-ollama install` or `remove`: it clears what was left",
            )
        for record in self.records.all("pulled"):
            if record.get("host") == self.daemon.key:
                detail = f"`{record.get('name')}` was pulled for its files only, and interrupted"
                fix = "Run any `llava-ollama install` or `repair`: it clears what was left"
                yield Finding("leftovers", "warning", detail, fix)
        for record in self.records.all("probe"):
            detail = f"{record.get('path')} asked a daemon whether the folder is its own"
            fix = "Run any `llava-ollama install`, or with `sudo -E`: it clears what was left"
            yield Finding("leftovers", "warning", detail, fix)
        known = {name for r in pending for name in (r.get("temporary"), r.get("backup"))}
        for model in self.daemon.models():
            bare = model.name.removesuffix(":latest")
            temporary = tuple(f"{swap.PREFIX}{kind}-" for kind in ("new", "old", "demo"))
            if bare.startswith(temporary) and bare not in known:
                what = "demo" if bare.startswith(temporary[-1]) else "install"
                fix = f"If no {what} is running elsewhere: llava-ollama remove --force {bare}"
                yield Finding("leftovers", "warning", f"`{bare}` is a temporary name", fix)

    def _space(self, what: str, folder: Path) -> Finding:
        free = shutil.disk_usage(_nearest(folder)).free
        if free < _FEW_BYTES:
            detail = f"only {free / 1e9:.1f} GB free at {folder}"
            fix = "Free some space: the 8B model takes 5.5 GB (int4) or 17 GB (f16)"
            return Finding(what, "warning", detail, fix)
        return Finding(what, "ok", f"{free / 1e9:.1f} GB free at {folder}")


def _gigabytes(paths: Iterable[Path]) -> str:
    """Return how large the files are together; some may be gone in the meantime."""
    size = 0
    for path in paths:
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return gigabytes(size)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path("/"))


def _unwritable(what: str, folder: Path, variable: str) -> Finding | None:
    """Return a finding where nothing can be written into `folder`."""
    try:
        # Permissions alone do not tell: the disk may be full or read-only.
        with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
            file.write(b"x")
            file.flush()
    except OSError as exc:
        detail = f"`{folder}` cannot be written: {exc.strerror or exc}"
        return Finding(what, "error", detail, f"Set `{variable}` to a folder that can be written")
    return None


def _rewrites(version: str) -> bool:
    """Whether the daemon calls itself one of the rewriting releases, 0.30.0 to 0.34.0."""
    return (0, 30, 0) <= _release(version) <= (0, 34, 0)


def _release(version: str) -> tuple[int, ...]:
    """Return a version as numbers, or three zeros where it is not one of a release."""
    parts = version.partition("-")[0].split(".")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 9 for part in parts):  # noqa: PLR2004 - a.b.c, and no number that is too long for `int`
        return (0, 0, 0)
    return tuple(map(int, parts))
