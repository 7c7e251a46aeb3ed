"""Where a weight file is: at hand already, or still on the Hub; and getting it, verified."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llava_ollama import resources
from llava_ollama.errors import (
    ChecksumMismatch,
    DownloadError,
    HubUnreachable,
    UsageProblem,
)
from llava_ollama.package import is_sha256
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.weights.download import (
    ANEW,
    Budget,
    Download,
    agreed,
    disk,
    finished,
    move_aside,
    no_room,
)
from llava_ollama.weights.hashing import hash_file
from llava_ollama.weights.hub import Hub
from llava_ollama.weights.values import Digests, LocalFile, Origin, Whereabouts

if TYPE_CHECKING:
    from llava_ollama.catalog import Catalog, WeightFile
    from llava_ollama.records import Records


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Finds and fetches weight files; one for as long as a command runs."""

    downloads: Path
    """A folder of ours, made when it is needed."""
    folders: Sequence[Path] = ()
    """Folders of the user's, searched by file name."""
    reporter: Reporter = SILENT
    endpoint: str | None = None
    """The Hub; None means what huggingface_hub reads from `HF_ENDPOINT`. So for `hub_cache`."""
    hub_cache: Path | None = None
    wait: float = 1.0
    """The first pause before another attempt, in seconds."""
    ledger: Digests | None = None
    """Spares reading a file that has not changed since it was hashed."""
    catalog: Catalog | None = None
    """Knows with how many blocks a projector was trained, by its sha256."""
    records: Records | None = None
    """Where is written down which digest a mended copy has."""
    _told: set[Path] = field(default_factory=set, init=False, repr=False)

    def locate(self, file: WeightFile) -> Whereabouts:
        """Say where `file` is, reading no weights; the Hub is asked only for what is not pinned.

        Raises:
            ChecksumMismatch: a file that the user named cannot be the right one.
            DownloadError: a path is no file; the Hub, where it was needed, did not answer.
        """
        if file.source is not None:
            from llava_ollama.weights import mended

            return mended.locate(self, file, file.source)
        file = self._pinned(file)
        found = self._find(file)
        if found is not None:
            path, origin = found
            return Whereabouts(file, path, path.stat().st_size, file.sha256, origin, 0)
        size = file.size
        if size is None:
            size = Budget(self.reporter, self.wait).spend(lambda: self._hub.ask(file)).size
        missing = None if size is None else max(size - self._download(file).arrived(), 0)
        return Whereabouts(file, None, size, file.sha256, "hub", missing)

    def fetch(self, file: WeightFile) -> LocalFile:
        """Return `file` on this machine, its bytes proven by sha256; download it if need be.

        Raises:
            ChecksumMismatch: the bytes are not the published ones. A file of the user's is left
                as it is, one of ours is moved aside.
            DownloadError: it cannot be brought here; what has arrived is kept for the next time.
        """
        if file.source is not None:
            from llava_ollama.weights import mended

            return mended.fetch(self, file, file.source)
        file = self._pinned(file)
        found = self._find(file)
        if found is None:
            download = self._download(file)
            with download.lock():
                # Another process may have brought it while this one waited for the lock.
                found = self._finished(file)
                if found is None:
                    path, sha256, size = download.run()
                    if self.ledger is not None:
                        self.ledger.arrived(path, sha256)
                    return LocalFile(path, sha256, size, "downloaded")
        return self._verified(file, *found)

    def check_room(self, missing: Iterable[int | None]) -> None:
        """See that all the bytes `missing` fit on the disk, before the first of them is fetched.

        Raises:
            NotEnoughSpace: they do not.
        """
        needed = sum(size or 0 for size in missing)
        place = next(p for p in (self.downloads, *self.downloads.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise no_room("the files need", needed, self.downloads, free)

    def discard(self, local: LocalFile) -> None:
        """Remove a file that was downloaded or made in our own folder; any other is left alone."""
        if local.origin not in {"downloaded", "mended"} or not local.path.is_relative_to(
            self.downloads
        ):
            return
        with disk(self.downloads):
            if local.path.exists():
                local.path.unlink()
                if not any(local.path.parent.iterdir()):
                    local.path.parent.rmdir()

    def pin(self, file: WeightFile) -> str | None:
        """Return the sha256 that a file must have, as far as it is known without a look at it."""
        if file.source is None or file.sha256 is not None:
            return file.sha256
        from llava_ollama.weights import mended

        known = mended.remembered(self, file, file.source.sha256)
        return known[0] if known else None

    def forget(self, file: WeightFile) -> None:
        """Remove a file that was downloaded, and of a mended copy its original."""
        file = file.source or file
        place = self.locate(file)
        if place.origin == "downloaded" and place.path and place.size is not None:
            self.discard(LocalFile(place.path, place.sha256 or "", place.size, "downloaded"))

    def say_once(self, path: Path, note: str) -> None:
        """Make a remark on a file, the first time that there is one."""
        if path not in self._told:
            self._told.add(path)
            self.reporter.note(note)

    def _pinned(self, file: WeightFile) -> WeightFile:
        """Return `file` with a sha256 to hold it to; the Hub's, where it has none of its own."""
        parts = PurePosixPath(file.name.replace("\\", "/")).parts
        if not parts or ".." in parts or PurePosixPath(file.name).is_absolute():
            raise UsageProblem(
                f"`{file.name}` cannot be a file of a repository", hint="Its form is `model.gguf`"
            )
        if file.path is None:
            _check_text(str(file.repo), file.revision, file.name)
        if file.sha256 is not None or file.path is not None:
            return file
        try:
            offer = Budget(self.reporter, self.wait).spend(lambda: self._hub.ask(file))
        except HubUnreachable:
            # The Hub's cache names its blobs after their sha256, so it can answer in its place.
            cached = self._hub.cached(file)
            if cached is None or not is_sha256(cached.name):
                raise
            self.reporter.note(f"the Hub does not answer; `{file.name}` is taken from its cache")
            return replace(file, sha256=cached.name)
        return replace(file, sha256=agreed(file, offer), size=offer.size)

    def _find(self, file: WeightFile) -> tuple[Path, Origin] | None:
        """Return where `file` is at hand, or None; sizes are looked at, bytes are not."""
        if file.path is not None:
            return self._given(file, file.path)
        for folder in self.folders:
            candidate = folder / PurePosixPath(file.name).name
            size = _size(candidate)
            if size is not None and file.size in {None, size}:
                return candidate, "given"
            if size is not None:
                note = f"`{candidate}` has {size} bytes, not {file.size}: it is another file"
                self.say_once(candidate, note)
        cached = self._hub.cached(file)
        if cached is not None:
            self._check_size(file, cached)
            return cached, "cache"
        return self._finished(file)

    def _given(self, file: WeightFile, path: Path) -> tuple[Path, Origin]:
        if _size(path) is None:
            what = "is not a file" if path.exists() else "does not exist"
            raise DownloadError(f"`{path}` {what}", hint="Name a GGUF file")
        self._check_size(file, path)
        shipped = path.parent == resources.bundled(path.name).parent
        return path, "bundled" if shipped else "given"

    def _finished(self, file: WeightFile) -> tuple[Path, Origin] | None:
        if file.sha256 is None:
            return None
        path = finished(self.downloads, file, file.sha256)
        return (path, "downloaded") if _size(path) is not None else None

    def _check_size(self, file: WeightFile, path: Path) -> None:
        size = _size(path)
        if file.size not in {None, size}:
            raise ChecksumMismatch(
                f"`{path}` has {size} bytes, the published file has {file.size}", hint=_hint(file)
            )

    def _verified(self, file: WeightFile, path: Path, origin: Origin) -> LocalFile:
        with disk(path):
            found, size = self._digest(file, path)
            if file.sha256 in {None, found}:
                return LocalFile(path, found, size, origin)
            short = f"sha256 {found[:8]}…, not {str(file.sha256)[:8]}…"
            if origin == "downloaded":
                aside = move_aside(path, self.downloads, file, found)
                raise ChecksumMismatch(
                    f"`{path}` has changed since it was downloaded ({short}) and is now `{aside}`",
                    hint=ANEW,
                )
        raise ChecksumMismatch(
            f"`{path}` does not have the published bytes ({short})", hint=_hint(file)
        )

    def _digest(self, file: WeightFile, path: Path) -> tuple[str, int]:
        """Return sha256 and size of the file; nothing is refused on the ledger's word alone."""
        if self.ledger is None:
            return hash_file(path, self.reporter)
        found = self.ledger.known(path)
        if found is None:
            found = self.ledger.digest(path, self.reporter)
        elif file.sha256 not in {None, found.sha256}:
            found = self.ledger.hash(path, self.reporter)
        return found.sha256, found.size

    @property
    def _hub(self) -> Hub:
        return Hub(self.endpoint, self.hub_cache, self.reporter)

    def _download(self, file: WeightFile) -> Download:
        return Download(file, self._hub, self.downloads, self.reporter, self.wait)


def _check_text(*words: str) -> None:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as exc:
            raise UsageProblem(
                f"`{ascii(word)[1:-1]}` is not UTF-8 text, so the Hub cannot be asked for it",
                hint="Write the repository, revision and file as the Hub shows them",
            ) from exc


def _hint(file: WeightFile) -> str:
    if file.repo is None:
        return "Use the file that the catalog means, or correct its entry"
    return "Nothing was changed. Move it away, and the right one is downloaded"


def _size(path: Path) -> int | None:
    """Return the size of the file at `path`, or None if there is none to be read."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
