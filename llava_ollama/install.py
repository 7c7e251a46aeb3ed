"""Bring a package into a daemon: `plan()` only reads, `apply()` does it whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from llava_ollama import presence, swap
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.errors import DaemonError, LlavaOllamaError, ModelConflict, StoreError
from llava_ollama.package import Package
from llava_ollama.planning import (
    InstallPlan,
    PlannedPart,
    Planner,
    Wanted,
    from_catalog,
    from_files,
    mended,
)
from llava_ollama.preflight import LLAMA3_TOKENS, no_template, preflight, remarks
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.results import InstalledPart, InstallResult, installed_parts
from llava_ollama.transfer import Blob, Brought
from llava_ollama.transfer.interface import THERE
from llava_ollama.ways import TakenAway, Ways
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
    "mended",
]

FILE_NAMES = ("model.gguf", "projector.gguf")
"""Names that sort in this order: 0.34 takes the files of a `create` by name."""
NOTHING = (THERE, THERE)
_TRIES = 3
"""Attempts at `create` where another model's removal takes away a blob that both have."""
_REWRITING = ("validating GGUF model", "verifying conversion", "updating GGUF projector metadata")
"""Status lines of the daemons that write other bytes than they were given (0.30 to 0.34.0)."""


class Installer:
    """Installs into one daemon, with files from `weights`, remembering in `records`."""

    def __init__(
        self,
        daemon: Daemon,
        weights: Weights,
        records: Records,
        *,
        ways: Ways | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        self._ways = ways = ways or Ways.plain(daemon, records, weights.downloads.parent)
        self._daemon = daemon
        self._weights = weights
        self._records = records
        self._reporter = reporter
        self._planner = Planner(daemon, weights, records=records, ways=ways)

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
                Or the way that the user has named is not open.
        """
        begun = time.monotonic()
        if plan.existing == "different" and not force:
            raise conflict(plan.wanted.name)
        self._weights.check_room(p.to_download for p in plan.parts if p.transfer != "pull")
        files = [
            None if part.transfer in {"there", "pull"} else self._fetch(part) for part in plan.parts
        ]
        package = self._package(plan, files)
        if plan.existing == "equal":
            changed, brought = False, NOTHING
            shown = presence.made(self._daemon, plan.wanted.name)
        else:
            changed, brought, shown = self._install(plan, package, files, force=force)
        self._remember(plan.wanted.name, package)
        for part, file, each in zip(plan.parts, files, brought, strict=True):
            # Bytes that the daemon shares cost nothing, and spare a download another time.
            shared = each.how in {"hard link", "reflink"} and part.mending is None
            self._clean_up(part, file, keep=keep_files or shared)
        return InstallResult(
            name=plan.wanted.name,
            changed=changed,
            package_digest=package.digest(),
            parts=installed_parts(plan, package, shown, brought),
            seconds=time.monotonic() - begun,
        )

    def _install(
        self, plan: InstallPlan, package: Package, files: list[LocalFile | None], *, force: bool
    ) -> tuple[bool, tuple[Brought, Brought], Shown]:
        """Bring the files and register them; say whether that was needed, and how they came."""
        model, projector = (file.path if file else None for file in files)
        for remark in remarks(preflight(model, projector, llama3=plan.wanted.is_llama3)):
            self._reporter.note(remark)
        for _ in range(_TRIES - 1):
            with suppress(TakenAway):
                return self._install_once(plan, package, files, force=force)
            self._ways.open_again("pull")
        return self._install_once(plan, package, files, force=force)

    def _install_once(
        self, plan: InstallPlan, package: Package, files: list[LocalFile | None], *, force: bool
    ) -> tuple[bool, tuple[Brought, Brought], Shown]:
        wanted, unread = plan.wanted, files[0] is None
        with swap.exclusive(self._daemon, self._records, wanted.name, self._reporter) as exchange:
            # Whoever had the lock before may have installed just this.
            existing, shown = self._planner.existing(wanted, package.model, package.projector)
            if existing == "equal" and shown is not None:
                return False, NOTHING, shown
            if existing == "different" and not force:
                raise conflict(wanted.name)
            brought, made = self._make(exchange, plan, package, files)
            if wanted.is_llama3 and unread:
                self._check_vocabulary(exchange.temporary, wanted.model.name)
            damaged = existing == "broken"
            if damaged:  # where only a file was gone, it is whole again now
                existing, _ = self._planner.existing(wanted, package.model, package.projector)
            if not damaged or existing != "equal":
                exchange.put_in_place(replace=force or existing == "broken", damaged=damaged)
        return True, brought, made

    def _package(self, plan: InstallPlan, files: list[LocalFile | None]) -> Package:
        model, projector = (
            file.sha256 if file else part.digest or ""
            for part, file in zip(plan.parts, files, strict=True)
        )
        return plan.wanted.package(model, projector)

    def _fetch(self, part: PlannedPart) -> LocalFile:
        """Return the file on this machine; what is downloaded for it is written down before."""
        if proven := self._planner.proven.get(part.file):
            return proven
        if self._weights.locate(part.file).origin == "hub":
            self._records.put("transient", *part.file.key, record={"name": part.file.name})
        return self._weights.fetch(part.file)

    def _make(
        self,
        exchange: swap.Exchange,
        plan: InstallPlan,
        package: Package,
        files: list[LocalFile | None],
    ) -> tuple[tuple[Brought, Brought], Shown]:
        """Bring the blobs that the daemon lacks and register them under the temporary name."""
        digests = (package.model, package.projector)
        if not self._ways.offered:
            pulled = any(part.transfer == "pull" for part in plan.parts)
            tag = plan.wanted.model.library if pulled else None
            self._ways.offer(tag, frozenset(digests), begun=False)
        blobs = [_blob(*each) for each in zip(plan.parts, digests, files, strict=True)]

        def bring() -> list[Brought]:
            return [self._bring(*each, blobs) for each in enumerate(plan.parts)]

        try:
            brought = bring()
            exchange.alone(self._reporter)
            # Whoever pulls waits for this lock with another one in its hand.
            self._ways.close("pull")
            again, shown = self._create(exchange.temporary, package, bring)
        except BaseException:
            with suppress(LlavaOllamaError):  # the next run does it, and this error matters more
                self._ways.settle(blobs, self._reporter, registered=False)
            raise
        self._ways.settle(blobs, self._reporter, registered=True)
        return (brought[0].then(again[0]), brought[1].then(again[1])), shown

    def _create(
        self, name: str, package: Package, bring: Callable[[], list[Brought]]
    ) -> tuple[list[Brought], Shown]:
        """Register the package; say what had to be brought again for it.

        Whoever removes a model with a blob in common takes that blob away, until `create` has
        written its manifest.
        """
        brought, left = [THERE, THERE], _TRIES
        while True:
            brought, left = list(map(Brought.then, brought, bring())), left - 1
            try:
                return brought, self._register(name, package)
            except (DaemonError, StoreError):
                digests = (package.model, package.projector)
                if not left or all(map(self._daemon.has_blob, digests)):
                    raise

    def _bring(self, number: int, part: PlannedPart, blobs: list[Blob]) -> Brought:
        """Bring one blob; its file is fetched when it was planned to be there and is gone."""

        def fetch() -> Path:
            local = self._fetch(part)
            blobs[number] = Blob(local.path, local.sha256, local.size)
            return local.path

        return self._ways.bring(blobs[number], fetch, self._reporter)

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
        shown = presence.made(self._daemon, name)
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
                key = (self._daemon.key, source)
                record = {"host": self._daemon.key, "source": source, "stored": stored}
                self._records.put("rewritten", *key, record=record)
                self._reporter.note(
                    f"this daemon rewrites models (Ollama 0.30 to 0.34.0 do): it keeps sha256 "
                    f"{stored[:12]}… of the published {source[:12]}…"
                )

    def _remember(self, name: str, package: Package) -> None:
        record = {"host": self._daemon.key, "name": name, "package": package.digest()}
        self._records.put("installed", self._daemon.key, full_name(name), record=record)

    def _clean_up(self, part: PlannedPart, local: LocalFile | None, *, keep: bool) -> None:
        """Remove what was made or downloaded only to be sent; a file that was here before stays.

        The record also tells of a download by an earlier install, which did not get this far.
        """
        if local is not None and local.origin == "mended":
            self._weights.discard(local)  # made again at no great cost; a link has its other name
        if self._records.get("transient", *part.file.key) is not None:
            if not keep:
                self._weights.forget(part.file)
            self._records.drop("transient", *part.file.key)


def conflict(name: str) -> ModelConflict:
    """Return the error for a name that another model has."""
    return ModelConflict(
        f"another model is installed as `{name}`",
        hint="Replace it with `--force`, or choose a name of your own with `--name`",
    )


def _blob(part: PlannedPart, digest: str, file: LocalFile | None) -> Blob:
    if file is not None:
        return Blob(file.path, digest, file.size)
    return Blob(None, digest, part.size or 0)
