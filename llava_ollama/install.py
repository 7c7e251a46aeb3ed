"""Bring a package into a daemon: `plan()` only reads, `apply()` does it whole or not at all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_ollama import modelfile, swap
from llava_ollama.catalog import LLAMA3_PARAMETERS, Catalog, WeightFile
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.errors import (
    ModelBroken,
    ModelConflict,
    ModelNotInstalled,
    StoreError,
    TemplateError,
    UsageProblem,
)
from llava_ollama.modelfile import Modelfile
from llava_ollama.package import Package, ParameterValue
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.weights import LocalFile, Weights, Whereabouts

Existing = Literal["absent", "equal", "different", "broken"]
FILE_NAMES = ("model.gguf", "projector.gguf")
"""Names that sort in this order: 0.34 takes the files of a `create` by name."""
_CHUNK = 1 << 20
_REWRITING = (
    "validating GGUF model",
    "verifying conversion",
    "updating GGUF projector metadata",
)
"""Status lines of the daemons that write other bytes than they were given (0.30 to 0.34.0)."""


@dataclass(frozen=True)
class Wanted:
    """What to install, and under which name."""

    name: str
    model: WeightFile
    projector: WeightFile
    template: str = modelfile.LLAMA3
    """The name of the shipped template, or the text of one of the user's."""
    system: str = ""
    parameters: Mapping[str, ParameterValue] = dataclasses.field(default_factory=dict)

    @property
    def is_llama3(self) -> bool:
        """Whether the shipped Llama-3-instruct template is to be used."""
        return self.template == modelfile.LLAMA3

    def words(self) -> Modelfile:
        """Return the Modelfile that says the same as this install, beside the two files."""
        return Modelfile(
            model=_beside(self.model),
            projector=_beside(self.projector),
            template=modelfile.chat_template() if self.is_llama3 else self.template,
            system=self.system,
            parameters={**(LLAMA3_PARAMETERS if self.is_llama3 else {}), **self.parameters},
        )


@dataclass(frozen=True)
class PlannedPart:
    """One file of the plan: what it is, where it comes from, what has to move."""

    role: Literal["model", "projector"]
    file: WeightFile
    digest: str | None
    """sha256; None when only the download will tell."""
    size: int | None
    origin: str
    path: Path | None
    to_download: int | None
    to_send: int | None


@dataclass(frozen=True)
class InstallPlan:
    """What `apply()` will do; `--dry-run` prints exactly this."""

    wanted: Wanted
    host: str
    existing: Existing
    parts: tuple[PlannedPart, PlannedPart]
    modelfile: str
    found: str = ""
    """The package digest of what has the name now."""


@dataclass(frozen=True)
class InstalledPart:
    """One installed file: the digest of its source, and the digest that the daemon keeps."""

    role: Literal["model", "projector"]
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


def from_catalog(
    catalog: Catalog, name: str, quant: str | None, *, to: str | None = None
) -> Wanted:
    """Return the catalog's model `name` in one quant, under the model card's name unless `to`."""
    entry = catalog.entry(name)
    chosen, model = entry.model(quant)
    return Wanted(
        name=to or f"{name}-{chosen}",
        model=model,
        projector=entry.projector,
        template=_template_text(entry.template),
        parameters=entry.parameters,
    )


def from_files(
    model: str | None,
    projector: str | None,
    *,
    name: str | None,
    repo: str | None = None,
    revision: str | None = None,
) -> Wanted:
    """Return two files of the user's own: paths, or names in the Hub repository `repo`.

    Raises:
        UsageProblem: one of the two, or the name, is missing.
    """
    if not model or not projector:
        raise UsageProblem(
            "a vision model is two files: the model and its projector (mmproj)",
            hint="Give both `--model-file` and `--mmproj-file`",
        )
    if not name:
        raise UsageProblem(
            "files of your own need a name", hint="Choose one with `--name`, such as `my-llava`"
        )

    def weight_file(text: str) -> WeightFile:
        if repo is None:
            return WeightFile(name=Path(text).name, path=Path(text))
        return WeightFile(name=text, repo=repo, revision=revision or "main")

    return Wanted(name=name, model=weight_file(model), projector=weight_file(projector))


def _template_text(template: str) -> str:
    if template == modelfile.LLAMA3:
        return template
    return read_template(Path(template))


def read_template(path: Path) -> str:
    """Return the text of a Go template file.

    Raises:
        TemplateError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise TemplateError(
            f"the template `{path}` cannot be read: {getattr(exc, 'strerror', 'not UTF-8 text')}",
            hint="Name a file with a Go template, as in a Modelfile's TEMPLATE",
        ) from exc


class Installer:
    """Installs into one daemon, with files from `weights`, remembering in `records`."""

    def __init__(
        self, daemon: Daemon, weights: Weights, records: Records, *, reporter: Reporter = SILENT
    ) -> None:
        self._daemon = daemon
        self._weights = weights
        self._records = records
        self._reporter = reporter
        self._proven: dict[WeightFile, LocalFile] = {}

    def plan(self, wanted: Wanted) -> InstallPlan:
        """Find out what has to be done; nothing is written, here or at the daemon.

        Raises:
            UsageProblem: the name is not one that Ollama takes.
            TemplateError: a value cannot stand in a Modelfile.
            GGUFError: a file at hand is damaged, or the two do not belong together.
        """
        full_name(wanted.name)
        text = modelfile.render(wanted.words())
        places = self._locate(wanted.model), self._locate(wanted.projector)
        package = self._package(wanted, places[0].sha256, places[1].sha256)
        existing, shown = self._existing(wanted.name, package)
        if existing != "equal":
            self._check_at_hand(wanted, places)
        model = self._part("model", places[0], skip=existing == "equal")
        projector = self._part("projector", places[1], skip=existing == "equal")
        installed = shown.package() if shown else None
        return InstallPlan(
            wanted, self._daemon.host, existing, (model, projector), text,
            found=installed.digest() if installed else "",
        )  # fmt: skip

    def apply(
        self, plan: InstallPlan, *, force: bool = False, keep_files: bool = False
    ) -> InstallResult:
        """Carry out a plan. Whatever goes wrong, the name keeps the model that it had.

        Raises:
            ModelConflict: another model has the name, and `force` is not set.
            StoreError: the daemon registered something else than was sent; it was taken back.
        """
        begun = time.monotonic()
        wanted = plan.wanted
        if plan.existing == "equal":
            return self._unchanged(plan, begun)
        if plan.existing == "different" and not force:
            raise conflict(wanted.name)
        files = [self._fetch(part, keep_files=keep_files) for part in plan.parts]
        self._check_files(wanted, files)
        package = self._package(wanted, files[0].sha256, files[1].sha256)
        assert package is not None  # noqa: S101 - fetched files have digests
        sent = [self._send(file) for file in files]
        with swap.exclusive(self._daemon, self._records, wanted.name, self._reporter) as exchange:
            stored = self._register(exchange.temporary, package)
            exchange.put_in_place(replace=force)
        self._remember(wanted.name, package)
        for part, file in zip(plan.parts, files, strict=True):
            self._clean_up(part.file, file)
        sources = (package.model, package.projector)
        roles: tuple[Literal["model", "projector"], ...] = ("model", "projector")
        return InstallResult(
            name=wanted.name,
            changed=True,
            package_digest=package.digest(),
            parts=tuple(map(InstalledPart, roles, sources, stored, sent)),
            seconds=time.monotonic() - begun,
        )

    def _locate(self, file: WeightFile) -> Whereabouts:
        """Say where a file is; one that nothing pins is hashed, since its digest is its name."""
        place = self._weights.locate(file)
        if place.path is None or place.sha256 is not None:
            return place
        self._proven[place.file] = local = self._weights.fetch(place.file)
        return dataclasses.replace(place, sha256=local.sha256)

    def _package(self, wanted: Wanted, model: str | None, projector: str | None) -> Package | None:
        if model is None or projector is None:
            return None
        words = wanted.words()
        return Package(model, projector, words.template, words.system, words.parameters)

    def _existing(self, name: str, package: Package | None) -> tuple[Existing, Shown | None]:
        try:
            shown = self._daemon.show(name)
        except ModelNotInstalled:
            return "absent", None
        except ModelBroken:
            return "broken", None  # an empty manifest: the daemon died while it wrote it
        equal = package is not None and self._differs(shown, package) is None
        return ("equal" if equal else "different"), shown

    def _differs(self, shown: Shown, package: Package) -> str | None:
        """Return in what `shown` is not `package`, or None when it is all of it."""
        stored = tuple(self._stored(d) for d in (package.model, package.projector))
        if shown.sources not in {stored, (package.model, package.projector)}:
            return "files"
        if shown.template != package.template:
            return "words of the chat template"
        if shown.system != package.system:
            return "words of the system prompt"
        if dict(shown.parameters) != dict(package.parameters):
            return "parameters"
        return None if shown.has_vision else "capabilities"

    def _stored(self, digest: str) -> str:
        """Return what a rewriting daemon makes of the file `digest`, where that is known."""
        record = self._records.get("rewritten", self._daemon.host, digest)
        return record["stored"] if record else digest

    def _part(
        self, role: Literal["model", "projector"], place: Whereabouts, *, skip: bool
    ) -> PlannedPart:
        there = skip or (place.sha256 is not None and self._daemon.has_blob(place.sha256))
        return PlannedPart(
            role=role,
            file=place.file,
            digest=place.sha256,
            size=place.size,
            origin="daemon" if there else place.origin,
            path=None if there else place.path,
            to_download=0 if there else place.missing,
            to_send=0 if there else place.size,
        )

    def _check_at_hand(self, wanted: Wanted, places: tuple[Whereabouts, Whereabouts]) -> None:
        """Look into the files that are here already, before anything is downloaded or sent."""
        model, projector = (place.path for place in places)
        _preflight(wanted, model, projector)

    def _check_files(self, wanted: Wanted, files: list[LocalFile | _AtDaemon]) -> None:
        model, projector = (f.path if isinstance(f, LocalFile) else None for f in files)
        _preflight(wanted, model, projector)

    def _fetch(self, part: PlannedPart, *, keep_files: bool) -> LocalFile | _AtDaemon:
        if part.origin == "daemon" and part.digest is not None:
            return _AtDaemon(part.digest)
        if part.origin == "hub" and not keep_files:
            key = (part.file.repo or "", part.file.revision, part.file.name)
            self._records.put("transient", *key, record={"name": part.file.name})
        return self._proven.get(part.file) or self._weights.fetch(part.file)

    def _send(self, file: LocalFile | _AtDaemon) -> int:
        if isinstance(file, _AtDaemon) or self._daemon.has_blob(file.sha256):
            return 0
        task = f"sending {file.path.name}"
        self._reporter.started(task, file.size)
        try:
            self._daemon.upload(file.sha256, file.size, self._read(file, task))
        finally:
            self._reporter.finished(task)
        return file.size

    def _read(self, file: LocalFile, task: str) -> Iterator[bytes]:
        with file.path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                yield chunk
                self._reporter.advanced(task, len(chunk))

    def _register(self, name: str, package: Package) -> tuple[str, str]:
        """Create the model under `name`, check it there, and return the digests that are kept."""
        rewriting = False
        for status in self._daemon.create(
            name,
            files=dict(zip(FILE_NAMES, (package.model, package.projector), strict=True)),
            template=package.template,
            system=package.system,
            parameters=package.parameters,
        ):
            rewriting = rewriting or status.startswith(_REWRITING)
        shown = self._daemon.show(name)
        if rewriting:
            self._note_rewriting(shown, package)
        if wrong := self._differs(shown, package):
            raise StoreError(
                f"the daemon at {self._daemon.host} registered other {wrong} than were sent",
                hint="Nothing was changed; update Ollama, and report this if it stays so",
            )
        model, projector = shown.sources
        return model, projector

    def _note_rewriting(self, shown: Shown, package: Package) -> None:
        for source, stored in zip((package.model, package.projector), shown.sources, strict=False):
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

    def _clean_up(self, source: WeightFile, file: LocalFile | _AtDaemon) -> None:
        """Remove what was downloaded only to be sent; a file that was here before stays."""
        key = (source.repo or "", source.revision, source.name)
        if isinstance(file, LocalFile) and self._records.get("transient", *key):
            self._weights.discard(file)
            self._records.drop("transient", *key)

    def _unchanged(self, plan: InstallPlan, begun: float) -> InstallResult:
        digests = [part.digest or "" for part in plan.parts]
        package = self._package(plan.wanted, *digests)
        assert package is not None  # noqa: S101 - equal means that both are known
        self._remember(plan.wanted.name, package)
        parts = tuple(
            InstalledPart(part.role, digest, self._stored(digest), 0)
            for part, digest in zip(plan.parts, digests, strict=True)
        )
        seconds = time.monotonic() - begun
        return InstallResult(plan.wanted.name, False, package.digest(), parts, seconds)


@dataclass(frozen=True)
class _AtDaemon:
    """A file that need not be here, since the daemon holds its bytes."""

    sha256: str


def conflict(name: str) -> ModelConflict:
    """Return the error for a name that another model has."""
    return ModelConflict(
        f"another model is installed as `{name}`",
        hint="Replace it with `--force`, or choose a name of your own with `--name`",
    )


def _preflight(wanted: Wanted, model: Path | None, projector: Path | None) -> None:
    """Refuse files that cannot work, as far as they are on this machine."""
    from llava_ollama.gguf import checks, reader

    headers = [reader.read(path) if path else None for path in (model, projector)]
    if headers[0] and headers[1]:
        checks.pair(headers[0], headers[1])
    if headers[0] and wanted.is_llama3 and not checks.has_llama3_vocabulary(headers[0]):
        raise no_template(wanted.model.name)


def no_template(file: str) -> TemplateError:
    """Return the error for a model that the Llama-3-instruct template does not fit."""
    return TemplateError(
        f"`{file}` is not a Llama-3 model: its vocabulary lacks `<|start_header_id|>` "
        "and `<|eot_id|>`",
        hint="Give its chat template as a Go template with `--template FILE`",
    )


def _beside(file: WeightFile) -> str:
    """Return the file's path as it stands in a Modelfile beside the card's files."""
    return f"./{file.name}" if file.path is None else str(file.path)
