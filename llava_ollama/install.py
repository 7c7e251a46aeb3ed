"""Bring a package into a daemon: `plan()` only reads, `apply()` does it whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from llava_ollama import swap
from llava_ollama.catalog import WeightFile
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.errors import DaemonError, GGUFError, ModelConflict, StoreError
from llava_ollama.package import Package
from llava_ollama.planning import (
    LLAMA3_TOKENS,
    InstallPlan,
    PlannedPart,
    Planner,
    Role,
    Wanted,
    from_catalog,
    from_files,
    no_template,
    preflight,
    read_template,
)
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.weights import LocalFile, Weights

__all__ = [
    "InstallPlan",
    "InstallResult",
    "InstalledPart",
    "Installer",
    "PlannedPart",
    "Wanted",
    "from_catalog",
    "from_files",
    "read_template",
]

FILE_NAMES = ("model.gguf", "projector.gguf")
"""Names that sort in this order: 0.34 takes the files of a `create` by name."""
_CHUNK = 1 << 20
_TRIES = 3
"""Attempts at `create` where another model's removal takes away a blob that both have."""
_REWRITING = ("validating GGUF model", "verifying conversion", "updating GGUF projector metadata")
"""Status lines of the daemons that write other bytes than they were given (0.30 to 0.34.0)."""


@dataclass(frozen=True)
class InstalledPart:
    """One installed file: the digest of its source, and the digest that the daemon keeps."""

    role: Role
    source_digest: str
    stored_digest: str
    bytes_sent: int


@dataclass(frozen=True)
class InstallResult:
    """What `apply()` did; `changed` is False when all was there already."""

    name: str
    changed: bool
    package_digest: str
    parts: tuple[InstalledPart, ...]
    seconds: float


class Installer:
    """Installs into one daemon, with files from `weights`, remembering in `records`."""

    def __init__(
        self, daemon: Daemon, weights: Weights, records: Records, *, reporter: Reporter = SILENT
    ) -> None:
        self._daemon = daemon
        self._weights = weights
        self._records = records
        self._reporter = reporter
        self._planner = Planner(daemon, weights, records)

    def plan(self, wanted: Wanted) -> InstallPlan:
        """Find out what has to be done; nothing is written, here or at the daemon.

        Raises:
            UsageProblem: the name is not one that Ollama takes.
            TemplateError: a value cannot stand in a Modelfile.
            GGUFError: a file at hand is damaged, or the two do not belong together.
        """
        return self._planner.plan(wanted)

    def apply(
        self, plan: InstallPlan, *, force: bool = False, keep_files: bool = False
    ) -> InstallResult:
        """Carry out a plan. Whatever goes wrong, the name keeps the model that it had.

        Raises:
            ModelConflict: another model has the name, and `force` is not set.
            StoreError: the daemon registered something else than was sent; it was taken back.
        """
        begun = time.monotonic()
        if plan.existing == "different" and not force:
            raise conflict(plan.wanted.name)
        files = [self._fetch(part, keep=keep_files) for part in plan.parts]
        package = self._package(plan, files)
        if plan.existing == "equal":
            changed, sent, shown = False, (0, 0), self._daemon.show(plan.wanted.name)
        else:
            changed, sent, shown = self._install(plan, package, files, force=force)
        self._remember(plan.wanted.name, package)
        for part in plan.parts:
            self._clean_up(part.file, keep=keep_files)
        return InstallResult(
            name=plan.wanted.name,
            changed=changed,
            package_digest=package.digest(),
            parts=_installed(package, shown, sent),
            seconds=time.monotonic() - begun,
        )

    def _install(
        self, plan: InstallPlan, package: Package, files: list[LocalFile | None], *, force: bool
    ) -> tuple[bool, tuple[int, int], Shown]:
        """Send the files and register them; say whether that was needed, and what was sent."""
        wanted = plan.wanted
        preflight(wanted, *(file.path if file else None for file in files))
        with swap.exclusive(self._daemon, self._records, wanted.name, self._reporter) as exchange:
            # Whoever had the lock before may have installed just this.
            existing, shown = self._planner.existing(wanted, package.model, package.projector)
            if existing == "equal" and shown is not None:
                return False, (0, 0), shown
            if existing == "different" and not force:
                raise conflict(wanted.name)
            sent, made = self._make(exchange, plan, package, files)
            if wanted.is_llama3 and files[0] is None:
                self._check_vocabulary(exchange.temporary, wanted.model.name)
            exchange.put_in_place(replace=force, damaged=existing == "broken")
        return True, sent, made

    def _package(self, plan: InstallPlan, files: list[LocalFile | None]) -> Package:
        model, projector = (
            file.sha256 if file else part.digest or ""
            for part, file in zip(plan.parts, files, strict=True)
        )
        return plan.wanted.package(model, projector)

    def _fetch(self, part: PlannedPart, *, keep: bool) -> LocalFile | None:
        """Return the file on this machine; None where it need not be, the daemon having it."""
        if part.origin == "daemon" and part.digest is not None:
            return None
        if part.origin == "hub" and not keep:
            self._records.put("transient", *_key(part.file), record={"name": part.file.name})
        return self._planner.proven.get(part.file) or self._weights.fetch(part.file)

    def _make(
        self,
        exchange: swap.Exchange,
        plan: InstallPlan,
        package: Package,
        files: list[LocalFile | None],
    ) -> tuple[tuple[int, int], Shown]:
        """Bring the blobs that the daemon lacks and register them under the temporary name."""
        digests = (package.model, package.projector)

        def send() -> list[int]:
            return [self._send(*each) for each in zip(plan.parts, digests, files, strict=True)]

        sent = send()
        exchange.alone(self._reporter)
        left = _TRIES
        while True:
            # Whoever removes a model with a blob in common takes that blob away, until `create`
            # has written its manifest.
            sent = list(map(sum, zip(sent, send(), strict=True)))
            left -= 1
            try:
                shown = self._register(exchange.temporary, package)
            except (DaemonError, StoreError):
                if not left or all(map(self._daemon.has_blob, digests)):
                    raise
            else:
                return (sent[0], sent[1]), shown

    def _send(self, part: PlannedPart, digest: str, file: LocalFile | None) -> int:
        """Send a blob unless the daemon has it; return the number of bytes."""
        if self._daemon.has_blob(digest):
            return 0
        # Planned as "at the daemon", and gone since.
        file = file or self._weights.fetch(part.file)
        task = f"sending {file.path.name}"
        self._reporter.started(task, file.size)
        try:
            self._daemon.upload(file.sha256, file.size, self._read(file, task))
        finally:
            self._reporter.finished(task)
        return file.size

    def _read(self, file: LocalFile, task: str) -> Iterator[bytes]:
        """Yield the file's bytes; it must still be as long as it was when it was hashed."""
        left = file.size
        try:
            with file.path.open("rb") as source:
                while left > 0 and (chunk := source.read(min(_CHUNK, left))):
                    yield chunk
                    left -= len(chunk)
                    self._reporter.advanced(task, len(chunk))
        except OSError as exc:
            raise GGUFError(
                f"`{file.path}` cannot be read: {(exc.strerror or type(exc).__name__).lower()}",
                hint="Check that the file is still there, and its permissions",
            ) from exc
        if left > 0:
            raise GGUFError(
                f"`{file.path}` became shorter while it was sent",
                hint="Run the same command again when nothing writes to the file",
            )

    def _register(self, name: str, package: Package) -> Shown:
        """Create the model under `name`, and return what the daemon shows of it, checked."""
        rewriting = False
        # Without a stop of ours the daemon adds those of the template that it detects itself.
        create = self._daemon.create(
            name,
            files=dict(zip(FILE_NAMES, (package.model, package.projector), strict=True)),
            template=package.template,
            system=package.system,
            parameters={"stop": (), **package.parameters},
        )
        with closing(create) as statuses:  # an interrupt must not leave the connection open
            for status in statuses:
                rewriting = rewriting or status.startswith(_REWRITING)
        shown = self._daemon.show(name)
        if rewriting and len(shown.sources) == len(FILE_NAMES):
            self._note_rewriting(shown, package)
        if wrong := self._planner.difference(shown, package):
            raise StoreError(
                f"the daemon at {self._daemon.host} registered other {wrong} than were sent",
                hint="Nothing was changed; update Ollama, and report this if it stays so",
            )
        return shown

    def _check_vocabulary(self, name: str, file: str) -> None:
        """Ask the daemon for the vocabulary of a model whose file was never on this machine."""
        if not self._daemon.vocabulary(name) >= LLAMA3_TOKENS:
            raise no_template(file)

    def _note_rewriting(self, shown: Shown, package: Package) -> None:
        for source, stored in zip((package.model, package.projector), shown.sources, strict=True):
            if source != stored:
                key = (self._daemon.host, source)
                self._records.put("rewritten", *key, record={"source": source, "stored": stored})
                self._reporter.note(
                    f"this daemon rewrites models (Ollama 0.30 to 0.34.0 do): it keeps sha256 "
                    f"{stored[:12]}… of the published {source[:12]}…"
                )

    def _remember(self, name: str, package: Package) -> None:
        record = {"host": self._daemon.host, "name": name, "package": package.digest()}
        self._records.put("installed", self._daemon.host, full_name(name), record=record)

    def _clean_up(self, file: WeightFile, *, keep: bool) -> None:
        """Remove what was downloaded only to be sent; a file that was here before stays.

        The record also tells of a download by an earlier install, which did not get this far.
        """
        if self._records.get("transient", *_key(file)) is None:
            return
        place = self._weights.locate(file)
        if not keep and place.origin == "downloaded" and place.path and place.size is not None:
            local = LocalFile(place.path, place.sha256 or "", place.size, "downloaded")
            self._weights.discard(local)
        self._records.drop("transient", *_key(file))


def conflict(name: str) -> ModelConflict:
    """Return the error for a name that another model has."""
    return ModelConflict(
        f"another model is installed as `{name}`",
        hint="Replace it with `--force`, or choose a name of your own with `--name`",
    )


def _installed(
    package: Package, shown: Shown, sent: tuple[int, int]
) -> tuple[InstalledPart, InstalledPart]:
    model, projector = shown.sources
    return (
        InstalledPart("model", package.model, model, sent[0]),
        InstalledPart("projector", package.projector, projector, sent[1]),
    )


def _key(file: WeightFile) -> tuple[str, str, str]:
    return file.repo or "", file.revision, file.name
