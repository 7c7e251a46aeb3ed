"""What is wanted, and what would have to be done for it: all of this only reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_ollama import modelfile, presence
from llava_ollama.catalog import LLAMA3_PARAMETERS, Catalog, WeightFile
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.errors import ModelBroken, ModelNotInstalled, UsageProblem
from llava_ollama.findings import Finding
from llava_ollama.modelfile import Modelfile
from llava_ollama.package import Package, ParameterValue
from llava_ollama.preflight import preflight
from llava_ollama.records import Records
from llava_ollama.transfer import Blob, Cost, Name
from llava_ollama.ways import Ways
from llava_ollama.weights import LocalFile, Mending, Weights, Whereabouts
from llava_ollama.weights.mended import mended_copy

Existing = Literal["absent", "equal", "different", "broken"]
Role = Literal["model", "projector"]
FREE = Cost()


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

    def package(self, model: str, projector: str) -> Package:
        """Return the package that these words and two digests (64 hex digits) make."""
        words = self.words()
        return Package(model, projector, words.template, words.system, words.parameters)


@dataclass(frozen=True)
class PlannedPart:
    """One file of the plan: what it is, where it comes from, what has to move."""

    role: Role
    file: WeightFile
    digest: str | None
    """sha256; None when only the download will tell."""
    size: int | None
    origin: str
    path: Path | None = None
    to_download: int | None = 0
    transfer: Name | Literal["there"] = "there"
    """How its bytes will get into the daemon."""
    cost: Cost = FREE
    """The bytes that this needs, the download included."""
    passed_over: tuple[tuple[Name, str], ...] = ()
    """The other ways, and why each is not taken."""
    mending: Mending | None = None
    """Set where a mended copy is sent; `digest` and `size` are then the copy's."""


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
    unproven: Path | None = None
    """A folder that is taken for the daemon's store; `apply()` asks, and else takes another way."""
    findings: tuple[Finding, ...] = ()
    """What engines will miss in the files that are here."""


class Planner:
    """Compares what is wanted with what is on this machine, on the Hub and at one daemon."""

    def __init__(self, daemon: Daemon, weights: Weights, *, records: Records, ways: Ways) -> None:
        self._daemon = daemon
        self._weights = weights
        self._records = records
        self._ways = ways
        self.proven: dict[WeightFile, LocalFile] = {}
        """Files that nothing pins: they were hashed for the plan, which need not be repeated."""

    def plan(self, wanted: Wanted) -> InstallPlan:
        """Find out what has to be done; nothing is written, here or at the daemon.

        Raises:
            UsageProblem: Ollama takes no such name, or the system prompt would move pictures.
            TemplateError: a value cannot stand in a Modelfile.
            GGUFError: a file at hand is damaged, or the two do not belong together.
        """
        full_name(wanted.name)
        modelfile.check_system(wanted.system)
        text = modelfile.render(wanted.words())
        pins = self._weights.pin(wanted.model), self._weights.pin(wanted.projector)
        # What is there already needs no look at this disk or at the Hub, and no library for it.
        existing, shown = self.existing(wanted, *pins) if all(pins) else ("absent", None)
        findings: tuple[Finding, ...] = ()
        if existing == "equal":
            parts = (
                _present("model", wanted.model, pins[0]),
                _present("projector", wanted.projector, pins[1]),
            )
        else:
            places = self._locate(wanted.model), self._locate(wanted.projector)
            if not all(pins):
                existing, shown = self.existing(wanted, places[0].sha256, places[1].sha256)
            if existing != "equal":
                paths = places[0].path, places[1].path
                mending = places[1].mending is not None
                findings = preflight(*paths, llama3=wanted.is_llama3, mending=mending)
            parts = self._parts(wanted, places, equal=existing == "equal")
        installed = shown.package() if shown else None
        return InstallPlan(
            wanted=wanted,
            host=self._daemon.host,
            existing=existing,
            parts=parts,
            modelfile=text,
            found=installed.digest() if installed else "",
            unproven=self._ways.unproven if any(p.transfer == "link" for p in parts) else None,
            findings=findings,
        )

    def existing(
        self, wanted: Wanted, model: str | None, projector: str | None
    ) -> tuple[Existing, Shown | None]:
        """Compare what has the name with what is wanted, whose files have these digests."""
        try:
            shown = self._daemon.show(wanted.name)
        except ModelNotInstalled:
            return "absent", None
        except ModelBroken:
            return "broken", None  # an empty manifest: the daemon died while it wrote it
        if model is None or projector is None:
            return "different", shown
        equal = self.difference(shown, wanted.package(model, projector)) is None
        if equal and not presence.whole(self._daemon, shown):
            return "broken", None
        return ("equal" if equal else "different"), shown

    def difference(self, shown: Shown, package: Package) -> str | None:
        """Return in what `shown` is not `package`, or None when it is all of it."""
        sent = (package.model, package.projector)
        stored = tuple(self._records.stored(self._daemon.key, digest) for digest in sent)
        if shown.sources not in {stored, sent}:
            return "files"
        if shown.template != package.template:
            return "words of the chat template"
        if shown.system != package.system:
            return "words of the system prompt"
        if dict(shown.parameters) != dict(package.parameters):
            return "parameters"
        return None if shown.has_vision else "capabilities"

    def _locate(self, file: WeightFile) -> Whereabouts:
        """Say where a file is; one that nothing pins is hashed, since its digest is its name."""
        place = self._weights.locate(file)
        if file.source is not None and place.path is not None and place.mending is None:
            raise UsageProblem(
                f"`{place.path.name}` is right as it is: there is nothing to mend",
                hint="Install it without `--mend`",
            )
        if place.path is None or place.sha256 is not None:
            return place
        self.proven[place.file] = local = self._weights.fetch(place.file)
        return dataclasses.replace(place, sha256=local.sha256)

    def _parts(
        self, wanted: Wanted, places: tuple[Whereabouts, Whereabouts], *, equal: bool
    ) -> tuple[PlannedPart, PlannedPart]:
        has = self._daemon.has_blob
        there = [equal or (p.sha256 is not None and has(p.sha256)) for p in places]
        begun = any(
            (place.path is not None or place.missing != place.size) and not at_daemon
            for place, at_daemon in zip(places, there, strict=True)
        )
        digests = frozenset(place.sha256 for place in places if place.sha256)
        # No public tag has a mended projector.
        tag = None if places[1].mending else wanted.model.library
        self._ways.offer(tag, digests, begun=begun)
        return (
            self._part("model", places[0], there=there[0]),
            self._part("projector", places[1], there=there[1]),
        )

    def _part(self, role: Role, place: Whereabouts, *, there: bool) -> PlannedPart:
        mending = place.mending
        if there:
            return PlannedPart(
                role, place.file, place.sha256, place.size, origin="daemon", mending=mending
            )
        choice = self._ways.choose(Blob(place.path, place.sha256 or "", place.size or 0))
        way, cost, missing = choice.transfer.name, choice.cost, place.missing
        if way == "pull":
            missing = 0
        elif missing is not None and place.path is None:
            cost = dataclasses.replace(cost, fetched=missing)  # the rest has arrived before
        if mending is not None:
            copy = place.size or 0
            cost = dataclasses.replace(cost, read=cost.read + copy, written=cost.written + copy)
        return PlannedPart(
            role=role,
            file=place.file,
            digest=place.sha256,
            size=place.size,
            origin="registry" if way == "pull" else place.origin,
            path=place.path,
            to_download=missing,
            transfer=way,
            cost=cost,
            passed_over=choice.passed_over,
            mending=mending,
        )


def _present(role: Role, file: WeightFile, digest: str | None) -> PlannedPart:
    mending = Mending(file.source.sha256, ()) if file.source else None
    return PlannedPart(role, file, digest, file.size, "daemon", mending=mending)


MENDED = "-mended"
"""What `install --mend` puts behind a model's name."""


def mended(wanted: Wanted, layers: int | None = None) -> Wanted:
    """Return the same with its projector mended, which was trained with `layers` blocks.

    Raises:
        UsageProblem: the catalog knows another number.
    """
    return dataclasses.replace(wanted, projector=mended_copy(wanted.projector, layers))


def from_catalog(
    catalog: Catalog, name: str, quant: str | None, *, to: str | None = None
) -> Wanted:
    """Return the catalog's model `name` in one quant, under the model card's name unless `to`."""
    entry = catalog.entry(name)
    chosen, model = entry.model(quant)
    llama3 = entry.template == modelfile.LLAMA3
    return Wanted(
        name=to or f"{name}-{chosen}",
        model=model,
        projector=entry.projector,
        template=entry.template if llama3 else modelfile.read_template(Path(entry.template)),
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


def _beside(file: WeightFile) -> str:
    """Return the file's path as it stands in a Modelfile beside the card's files."""
    return f"./{file.name}" if file.path is None else str(file.path)
