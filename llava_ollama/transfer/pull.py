"""Pull: the daemon fetches the same bytes from a registry, and nothing comes by this machine.

Only where a public tag has exactly the wanted files: its manifest is compared before anything is
fetched. The tag's name is there until `create` has named the blobs, then it goes, unless the user
had it before.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

from llava_ollama import locks
from llava_ollama.daemon import Daemon
from llava_ollama.daemon_errors import is_mismatch
from llava_ollama.errors import DaemonError, LlavaOllamaError, ModelNotInstalled
from llava_ollama.progress import Reporter
from llava_ollama.records import Records
from llava_ollama.store import manifests
from llava_ollama.store.manifests import Manifest
from llava_ollama.transfer.interface import THERE, Blob, Brought, Cost

LIBRARY = "https://registry.ollama.ai"
PATIENCE = 120.0
"""Seconds that a pull may stand still: a daemon waits for a silent registry for ever."""
_SECONDS = 15.0
_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Pull:
    """Has the daemon pull `tag`, such as `llava-llama3:8b`, for its two weight files."""

    daemon: Daemon
    records: Records
    tag: str | None
    """None: the catalog knows of none."""
    wanted: frozenset[str]
    """The sha256 of the model and of the projector: the tag must have these and no others."""
    registry: str = LIBRARY
    not_now: str | None = None
    """A reason of the caller's not to, such as a Hub mirror or offline mode."""
    patience: float = PATIENCE
    name: Literal["pull"] = field(default="pull", init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _fetched: set[str] = field(default_factory=set, init=False, repr=False)
    _held: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def why_not(self, blob: Blob) -> str | None:
        """Return why the tag cannot serve, if so; the registry is asked once."""
        if self.tag is None:
            return "no public tag is known to have this file"
        if self.not_now is not None:
            return self.not_now
        if blob.path is not None:
            return "the file is on this machine already"
        if blob.sha256 not in self.wanted:
            return f"`{self.tag}` is not known to have this file"
        return self._refusal

    def cost(self, blob: Blob) -> Cost:
        """Return what the daemon fetches and writes."""
        return Cost(written=blob.size, fetched=blob.size)

    def bring(self, blob: Blob, reporter: Reporter) -> Brought:
        """Pull the tag, the first time that one of its files is asked for."""
        with self._lock:
            if not self._fetched and self.daemon.has_blob(blob.sha256):
                return THERE
            if not self._fetched:
                self._pull(reporter)
        if not self.daemon.has_blob(blob.sha256):
            raise DaemonError(
                f"`{self.tag}` came without the file of sha256 {blob.sha256[:8]}…",
                hint="The library has moved on: use `--transfer upload`",
            )
        if blob.sha256 not in self._fetched:
            return THERE  # another process brought it meanwhile
        return Brought("pull", written=blob.size)

    def has_fetched(self, sha256: str) -> bool:
        """Whether the daemon lacked this blob before this pull brought it."""
        return sha256 in self._fetched

    def settle(self, blobs: Sequence[Blob], reporter: Reporter, *, registered: bool) -> None:
        """Remove the tag's name; blobs that `create` has named stay."""
        del blobs, reporter, registered
        with self._held:
            if self._fetched:
                _remove_pulled(self.daemon, self.records, self._full_name)
            self._fetched.clear()

    @cached_property
    def _refusal(self) -> str | None:
        try:
            manifest = self._manifest()
        except OSError as exc:
            return f"the registry does not tell what `{self.tag}` is ({_reason(exc)})"
        if manifest.problem:
            return f"the registry does not tell what `{self.tag}` is (its answer is no manifest)"
        if manifest.files() != self.wanted:
            return f"`{self.tag}` has other files in the meantime"
        try:
            listed = {m.name: m.manifest_digest for m in self.daemon.models()}
        except LlavaOllamaError as exc:
            return exc.message
        if listed.get(self._listed_name, manifest.digest) != manifest.digest:
            return f"`{self.tag}` is installed in another version, which the pull would replace"
        return None

    @property
    def _full_name(self) -> str:
        """The name to pull: with its registry, where that is another than Ollama's."""
        if self.registry == LIBRARY:
            return str(self.tag)
        return f"{urlsplit(self.registry).netloc}/{self._repository}:{self._version}"

    @property
    def _repository(self) -> str:
        name = str(self.tag).partition(":")[0]
        return name if "/" in name else f"library/{name}"

    @property
    def _version(self) -> str:
        return str(self.tag).partition(":")[2] or "latest"

    @property
    def _listed_name(self) -> str:
        host = urlsplit(self.registry).netloc
        namespace, _, model = self._repository.partition("/")
        return manifests.display_name(host, namespace, model, self._version)

    def _manifest(self) -> Manifest:
        """Return the tag's manifest, as the registry has it now."""
        from http.client import HTTPException
        from urllib.request import ProxyHandler, Request, build_opener

        url = f"{self.registry}/v2/{self._repository}/manifests/{self._version}"
        # No proxy can reach a registry on this machine; any other goes the environment's way.
        own = urlsplit(self.registry).hostname in {"127.0.0.1", "localhost"}
        opener = build_opener(*([ProxyHandler({})] if own else []))
        request = Request(url, headers={"Accept": _ACCEPT})  # noqa: S310 - https, or a test's own
        try:
            with opener.open(request, timeout=_SECONDS) as answer:
                return manifests.parse(answer.read(manifests.LARGEST + 1), str(self.tag))
        except HTTPException as exc:  # a status line or headers that are none
            raise ConnectionError(errno.ECONNABORTED, "the connection was cut") from exc

    def _stuck(self) -> DaemonError:
        return DaemonError(
            f"the pull of `{self.tag}` has stood still for {self.patience:.0f} seconds",
            hint="Run the same command later, or use `--transfer upload`",
        )

    def _pull(self, reporter: Reporter) -> None:
        """Pull under a lock that `settle` releases: two processes may want the same tag."""
        name, host = self._full_name, self.daemon.key

        def waiting() -> None:
            reporter.note(f"another process pulls `{self.tag}`; waiting for it")

        lock = self.records.lock_file("pulled", host, name)
        with ExitStack() as held:
            held.enter_context(locks.locked(lock, waiting=waiting))
            missing = {digest for digest in self.wanted if not self.daemon.has_blob(digest)}
            if not missing:
                return
            if self._listed_name not in {m.name for m in self.daemon.models()}:
                self.records.put("pulled", host, name, record={"host": host, "name": name})
            try:
                try:
                    self._follow(name, reporter)
                except DaemonError as exc:
                    if not is_mismatch(exc):
                        raise
                    # What an interrupted pull had left was damaged; the daemon has removed it.
                    reporter.note(f"{exc.message}; trying again")
                    self._follow(name, reporter)
            except BaseException:
                _remove_pulled(self.daemon, self.records, name)
                raise
            self._fetched.update(missing)
            self._held.push(held.pop_all())

    def _follow(self, name: str, reporter: Reporter) -> None:
        """Have the daemon pull `name`, and pass on what it says."""
        progress = _Progress(reporter, self._stuck, self.patience)
        try:
            for said in self.daemon.pull(name, insecure=self.registry.startswith("http:")):
                progress.take(said)
        finally:
            progress.close()


class _Progress:
    """Tells a reporter what the daemon says of each blob; loses patience when that stays so."""

    def __init__(
        self, reporter: Reporter, stuck: Callable[[], DaemonError], patience: float
    ) -> None:
        self._reporter = reporter
        self._stuck = stuck
        self._patience = patience
        self._done: dict[str, int] = {}
        self._last: dict[object, tuple[Mapping[str, Any], float]] = {}

    def take(self, said: Mapping[str, Any]) -> None:
        """Report one line."""
        self._watch(said)
        digest, total = said.get("digest"), said.get("total")
        if not isinstance(digest, str) or not isinstance(total, int):
            return
        task = f"pull {digest.removeprefix('sha256:')[:12]}"
        if task not in self._done:
            self._reporter.started(task, total)
            self._done[task] = 0
        completed = said.get("completed", 0)
        if isinstance(completed, int) and completed > self._done[task]:
            self._reporter.advanced(task, completed - self._done[task])
            self._done[task] = completed

    def _watch(self, said: Mapping[str, Any]) -> None:
        """Raise when nothing has moved for too long.

        A daemon downloads several blobs at once and says of each in turn where it stands.
        """
        now = time.monotonic()
        last = self._last.get(said.get("digest"))
        if last is None or last[0] != said:
            self._last[said.get("digest")] = (said, now)
        if now - max(since for _, since in self._last.values()) > self._patience:
            raise self._stuck()

    def close(self) -> None:
        """Finish all that was begun."""
        for task in self._done:
            self._reporter.finished(task)


def _reason(exc: OSError) -> str:
    """Say in a few words why the registry could not be asked."""
    reason = getattr(exc, "reason", exc)  # urllib's: the error beneath, or the words of a status
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if getattr(exc, "code", 0) // 100 == 3:  # noqa: PLR2004 - HTTP
        return "its redirects lead nowhere"
    said = reason.strerror if isinstance(reason, OSError) else str(reason)
    return " ".join((said or type(reason).__name__).lower().split())[:100]


def recover(daemon: Daemon, records: Records) -> list[str]:
    """Remove the names that killed processes pulled on this daemon; return them."""
    removed = []
    for record in list(records.all("pulled")):
        if record.get("host") != daemon.key or "name" not in record:
            continue
        name = record["name"]
        with locks.if_free(records.lock_file("pulled", daemon.key, name)) as free:
            if free and _remove_pulled(daemon, records, name):
                removed.append(name)
    return removed


def _remove_pulled(daemon: Daemon, records: Records, name: str) -> bool:
    """Remove a name that was pulled for its blobs; one that the user had has no record."""
    if records.get("pulled", daemon.key, name) is None:
        return False
    with suppress(ModelNotInstalled):  # the pull did not get as far as its manifest
        daemon.delete(name)
    records.drop("pulled", daemon.key, name)
    return True
