"""Bringing a file from the Hub: resumed after a kill, hashed while it is written, tried again.

The file written into is ours. `hf_hub_download` begins again at zero after an interruption
(https://github.com/huggingface/huggingface_hub/issues/4196) and checks a file's size only; 16 GB
are not to be fetched twice.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from llava_ollama.errors import ChecksumMismatch, DownloadError, NotEnoughSpace
from llava_ollama.weights.hashing import HashedFile
from llava_ollama.weights.hub_errors import LONGEST_WAIT, Broken, patience

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from llava_ollama.catalog import WeightFile
    from llava_ollama.progress import Reporter
    from llava_ollama.weights.hub import Hub, Offer

_T = TypeVar("_T")
ANEW = "Delete that file and run the same command again: it downloads anew"
SPACE = (
    "Set `LLAVA_OLLAMA_CACHE` to a folder on a larger disk, or fetch the file yourself and name "
    "its folder with `--dir`"
)
_SPARE = 2_000_000_000
"""Bytes that must be free for the next part of a file whose size nobody tells."""
_TRIES = 5
"""Attempts that bring no new byte; the pauses between them make 15 s at most."""
_LONGEST_BACKOFF = 30.0


@dataclass
class Budget:
    """How often to try again; getting further (`position` in bytes) fills it up."""

    reporter: Reporter
    wait: float
    position: Callable[[], int] = lambda: 0
    _failures: int = 0
    _furthest: int = 0

    def spend(self, attempt: Callable[[], _T]) -> _T:
        """Return what `attempt` returns, as soon as it succeeds.

        Raises:
            DownloadError: another attempt is pointless, or there were enough without a new byte.
        """
        from tenacity import Retrying

        retrying = Retrying(
            retry=self._again,
            wait=self._pause,
            stop=self._enough,
            before_sleep=self._tell,
            reraise=True,
        )
        return retrying(attempt)

    def _again(self, state: RetryCallState) -> bool:
        # The furthest point counts, not the bytes: a server that starts anew each time is no use.
        if self.position() > self._furthest:
            self._furthest = self.position()
            self._failures = 0
        self._failures += 1
        error = _error(state)
        return error is not None and patience(error) is not None

    def _pause(self, state: RetryCallState) -> float:
        error = _error(state)
        asked = patience(error) if error else None
        backoff = self.wait * 2.0 ** (self._failures - 1)
        return max(asked or 0.0, min(backoff, _LONGEST_BACKOFF))

    def _enough(self, state: RetryCallState) -> bool:
        return self._failures >= _TRIES or state.upcoming_sleep > LONGEST_WAIT

    def _tell(self, state: RetryCallState) -> None:
        self.reporter.note(f"{_error(state)}; trying again in {state.upcoming_sleep:.0f} s")


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


@dataclass
class Download:
    """One file on its way from `hub` into `folder`; `wait` is the first pause, in seconds."""

    file: WeightFile
    hub: Hub
    folder: Path
    reporter: Reporter
    wait: float = 1.0
    _sink: HashedFile | None = None
    _started: bool = False

    @property
    def task(self) -> str:
        """What the reporter is told."""
        return f"download {self.file.name}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from bringing the same file; wait for the one that is at it."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        with disk(self.folder), ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self._slot}.lock"
            try:
                stack.enter_context(WeakFileLock(path, timeout=0.2))
            except Timeout:
                self.reporter.note(f"another process downloads `{self.file.name}`: waiting for it")
                stack.enter_context(WeakFileLock(path))
            yield

    def run(self) -> tuple[Path, str, int]:
        """Return path, sha256 and size of the file, once it is here; to be called in `lock`.

        Raises:
            DownloadError: no attempt succeeded; what has arrived is kept for the next call.
            ChecksumMismatch: the bytes are not the published ones; they are moved aside.
            NotEnoughSpace: the disk cannot hold the file.
        """
        budget = Budget(self.reporter, self.wait, lambda: self._sink.position if self._sink else 0)
        try:
            with disk(self.folder):
                return self._settle(budget.spend(self._attempt))
        finally:
            if self._sink:
                self._sink.close()
            if self._started:
                self.reporter.finished(self.task)

    def arrived(self) -> int:
        """Return how many bytes an interrupted download has left here."""
        return max((path.stat().st_size for path in self._partials()), default=0)

    def _attempt(self) -> str:
        """Ask what the Hub has, bring what is missing of it, and return the sha256 to expect."""
        offer = self.hub.ask(self.file)
        expected = agreed(self.file, offer)
        size = self.file.size if offer.size is None else offer.size
        if not self._started:  # the size may be the Hub's to tell, so not before
            self._started = True
            self.reporter.started(self.task, size)
        sink = self._open(offer, size)
        if sink.position != size:
            self._check_space(size, sink.position)
            self.hub.get(self.file, offer.commit, cast("BinaryIO", sink))
        if size is not None and sink.position < size:
            raise Broken(f"`{self.file.name}` ended after {sink.position} of {size} bytes")
        return expected

    def _open(self, offer: Offer, size: int | None) -> HashedFile:
        path = self.folder / f"{self._slot}-{_short(offer.commit, offer.etag)}.partial"
        if self._sink is None or self._sink.path != path:
            if self._sink:
                self._sink.close()
            for other in self._partials():
                if other != path:
                    self.reporter.note(f"the Hub has another `{self.file.name}` now: starting anew")
                    other.unlink(missing_ok=True)
            self._sink = HashedFile(path, self.file.name, task=self.task, reporter=self.reporter)
        self._sink.limit = size
        self._sink.check_room = lambda: self._check_space(_SPARE, 0)
        if size is not None and self._sink.position > size:
            self._sink.clear()
        return self._sink

    def _check_space(self, size: int | None, arrived: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size is not None and size - arrived > free:
            raise no_room(f"`{self.file.name}` needs", size - arrived, self.folder, free)

    def _settle(self, expected: str) -> tuple[Path, str, int]:
        """Give the file its place if its bytes are the published ones; else move it aside."""
        assert self._sink is not None  # noqa: S101 - an attempt has succeeded
        self._sink.close(sync=True)
        found = self._sink.sha256
        if found != expected:
            aside = move_aside(self._sink.path, self.folder, self.file, found)
            raise ChecksumMismatch(
                f"`{self.file.name}` arrived with other bytes than the published ones "
                f"(sha256 {found[:8]}…, not {expected[:8]}…) and is now `{aside}`",
                hint=ANEW,
            )
        place = finished(self.folder, self.file, expected)
        place.parent.mkdir(exist_ok=True)
        self._sink.path.replace(place)
        return place, found, self._sink.position

    @property
    def _slot(self) -> str:
        """The name of all that belongs to this file of this revision."""
        name = PurePosixPath(self.file.name).name[:100]
        return f"{name}.{_short(str(self.file.repo), self.file.name, self.file.revision)}"

    def _partials(self) -> list[Path]:
        # No glob: a file's name may hold brackets.
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return [
            path
            for path in paths
            if path.name.startswith(f"{self._slot}-") and path.suffix == ".partial"
        ]


def agreed(file: WeightFile, offer: Offer) -> str:
    """Return the sha256 to expect: the pin, or without one what the Hub says.

    Raises:
        ChecksumMismatch: the Hub offers something else than what is pinned.
        DownloadError: there is neither, so nothing could be believed.
    """
    expected = file.sha256 or offer.sha256
    if expected is None:
        raise DownloadError(
            f"neither the catalog nor the Hub gives a sha256 for `{file.name}` of `{file.repo}`",
            hint="Give its `sha256` in a catalog file of your own",
        )
    sizes = {file.size, offer.size} - {None}
    if offer.sha256 not in {None, expected} or len(sizes) > 1:
        raise ChecksumMismatch(
            f"the Hub's `{file.name}` at `{file.revision}` of `{file.repo}` is not the pinned one",
            hint="Its owner has replaced it; pin the new one in a catalog file of your own",
        )
    return expected


def finished(folder: Path, file: WeightFile, sha256: str) -> Path:
    """Return where the whole file stands once it has arrived in `folder`."""
    return folder / sha256[:16] / PurePosixPath(file.name).name


def move_aside(path: Path, folder: Path, file: WeightFile, found: str) -> Path:
    """Move a file of ours that has the wrong bytes out of the way; return where it is now."""
    aside = folder / f"{PurePosixPath(file.name).name}.corrupt-{found[:8]}"
    path.replace(aside)
    return aside


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Let what the operating system says of files in `folder` out as our errors."""
    try:
        yield
    except OSError as exc:
        path = exc.filename or folder
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NotEnoughSpace(f"no space is left in `{path}`", hint=SPACE) from exc
        raise DownloadError(
            f"`{path}` cannot be used: {(exc.strerror or type(exc).__name__).lower()}",
            hint="Check its owner and permissions, or set `LLAVA_OLLAMA_CACHE` to another folder",
        ) from exc


def no_room(who: str, size: int, folder: Path, free: int) -> NotEnoughSpace:
    """Return the error for `size` bytes where only `free` ones are."""
    return NotEnoughSpace(
        f"{who} {gigabytes(size)} in `{folder}`, where {gigabytes(free)} are free", hint=SPACE
    )


def gigabytes(size: int) -> str:
    """Return `size` (bytes) for people to read."""
    size = min(size, 1 << 63)  # what no file has may not fit into a float
    return f"{size / 1e9:.1f} GB" if size >= 1e9 / 20 else f"{size / 1e6:.1f} MB"


def _short(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
