"""What is wrong with a daemon's store, as far as it is seen without reading large weights.

Whether a hard link's source has changed is told by its size, or by an mtime that is later than
every manifest with the blob: `create` touches its blobs, then writes the manifest. A `create` of
another daemon with the same file, or of a model that is gone again, does the same, so that is a
reason to verify, no proof. A small file is read there and then; where the ledger knows the file in
this state, it is fine. Reflinks and copies do not change with the source.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from llava_ollama import quarantine
from llava_ollama.errors import StoreError
from llava_ollama.findings import Finding
from llava_ollama.ledger import Ledger
from llava_ollama.progress import SILENT
from llava_ollama.store import Layer, Manifest, Store, StoredBlob
from llava_ollama.store.folder import UNFINISHED
from llava_ollama.weights.download import gigabytes
from llava_ollama.weights.hashing import hash_file

_FULL = 64_000_000
"""Bytes: less than any model with a projector takes."""
_SMALL = 200
"""Bytes: 0.34 leaves two layers of 96 and 153 of its own at every `create`."""
_SLACK = 10**8
"""Nanoseconds. The daemon sets a blob's time to the clock's; a manifest, written later, has that of
the kernel's last tick, which may be some milliseconds earlier."""
_AT_START = "at its start Ollama removes what is older than an hour"


@dataclass(frozen=True)
class StoreDoctor:
    """Examines one store; changes nothing."""

    store: Store
    ledger: Ledger
    quick: int = 64 << 20
    """Bytes of a file that is read for a suspicion: hashed in the blink of an eye."""

    def examine(self) -> Iterator[Finding]:
        """Yield findings, for a healthy store none."""
        try:
            if hasattr(os, "statvfs"):
                yield from disk(self.store, os.statvfs(self.store.folder))
            yield from self._manifests()
            yield from self._links()
            yield from self._orphans()
            yield from self._unfinished()
            yield from self._quarantine()
        except StoreError as exc:
            yield Finding("models folder", "warning", exc.message, exc.hint or "")

    @cached_property
    def _found(self) -> list[Manifest]:
        return list(self.store.manifests())

    @cached_property
    def _blobs(self) -> dict[str, StoredBlob]:
        return {blob.sha256: blob for blob in self.store.blobs() if blob.sha256}

    @cached_property
    def _users(self) -> dict[str, list[Manifest]]:
        users: dict[str, list[Manifest]] = {}
        for manifest in self._found:
            for layer in manifest.blobs:
                users.setdefault(layer.sha256, []).append(manifest)
        return users

    def _manifests(self) -> Iterator[Finding]:
        for manifest in self._found:
            name = manifest.name.removesuffix(":latest")
            if manifest.problem:
                detail = f"that of `{name}` cannot be used: {manifest.problem}"
                fix = f"llava-ollama remove --force {name}, then install it again"
                yield Finding("manifests", "error", detail, fix)
            for layer in manifest.blobs:
                if problem := self._missing(layer):
                    yield Finding("layers", "error", f"`{name}` {problem}", _repair(name))

    def _missing(self, layer: Layer) -> str:
        kind = layer.media_type.rpartition(".")[2]
        blob = self._blobs.get(layer.sha256)
        if blob is None:
            return f"lacks its {kind}, sha256 {layer.sha256[:12]}…"
        if blob.size != layer.size:
            return f"has {blob.size:,} bytes of the {layer.size:,} of its {kind}"
        return ""

    def _links(self) -> Iterator[Finding]:
        for digest, users in self._users.items():
            blob = self._blobs.get(digest)
            if blob is None or not self._may_have_changed(blob, users):
                continue
            name = users[0].name.removesuffix(":latest")
            detail = f"a file that is hard-linked into `{name}` was written after the install"
            yield Finding("links", "warning", detail, f"llava-ollama verify {name}")

    def _may_have_changed(self, blob: StoredBlob, users: Iterable[Manifest]) -> bool:
        newest = max(manifest.modified_ns for manifest in users)
        try:
            if blob.path.stat().st_nlink == 1 or blob.modified_ns <= newest + _SLACK:
                return False
            if blob.size <= self.quick:
                return hash_file(blob.path, SILENT)[0] != blob.sha256
            known = self.ledger.known(blob.path)
        except OSError:
            return False  # removed in between
        return known is None or known.sha256 != blob.sha256

    def _orphans(self) -> Iterator[Finding]:
        if any(manifest.problem for manifest in self._found):
            return  # nobody knows what the damaged one needs, the daemon no more than we
        orphans = [b.size for d, b in self._blobs.items() if d not in self._users]
        if large := [size for size in orphans if size > _SMALL]:
            detail = f"{_amount(large)} that no model needs, in {self.store.blobs_folder}"
            fix = f"Restart Ollama if no install is under way: {_AT_START}"
            yield Finding("orphans", "warning", detail, fix)

    def _unfinished(self) -> Iterator[Finding]:
        kinds: dict[tuple[str, str], list[int]] = {}
        for blob in self.store.blobs():
            if blob.sha256 is None:
                kinds.setdefault(_origin(blob.path.name), []).append(blob.size)
        for (what, fix), sizes in kinds.items():
            detail = f"{_amount(sizes)} of {what} that was interrupted, or is under way"
            yield Finding("leftovers", "warning", detail, fix)

    def _quarantine(self) -> Iterator[Finding]:
        found = quarantine.contents(self.store)
        if found:
            size = _amount([size for _, size in found])
            detail = f"{size} with wrong bytes, in {self.store.folder / quarantine.FOLDER}"
            fix = "Delete them when nothing in them is missed"
            yield Finding("quarantine", "warning", detail, fix)


def disk(store: Store, state: os.statvfs_result) -> Iterator[Finding]:
    """Yield what is wrong with the disk that the store is on."""
    if state.f_flag & os.ST_RDONLY:
        detail = f"{store.folder} is on a disk that is mounted read-only"
        fix = "Mount it for writing, or start Ollama with `OLLAMA_MODELS` on another"
        yield Finding("models folder", "error", detail, fix)
    elif state.f_bavail * state.f_frsize < _FULL:
        detail = f"{store.folder} is on a full disk"
        yield Finding("models folder", "error", detail, "Free some space there")


def _origin(name: str) -> tuple[str, str]:
    """Return what made a file that is no blob, and who can remove it."""
    if name.startswith(UNFINISHED):
        return "an install", "Run any `llava-ollama install`: it clears what was left"
    if "-partial" in name:
        return "a pull", f"`ollama pull` goes on with it; else restart Ollama: {_AT_START}"
    return "an upload or a create", f"Only the daemon removes it: {_AT_START}"


def _amount(sizes: list[int]) -> str:
    files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    return f"{files} of {gigabytes(sum(sizes))}"


def _repair(name: str) -> str:
    return f"llava-ollama repair {name}"
