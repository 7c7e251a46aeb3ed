"""What a daemon has, and which of it is ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llava_ollama import planning, presence
from llava_ollama.catalog import Catalog
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.daemon_errors import without_file
from llava_ollama.errors import ModelBroken, ModelNotInstalled, TemplateError, UsageProblem
from llava_ollama.records import Records


@dataclass(frozen=True)
class Installed:
    """One model of the daemon."""

    name: str
    size: int
    ours: bool
    """Installed by this tool, here or elsewhere: see `is_ours`."""
    catalog: str
    """`MODEL QUANT` where its whole package is a catalog entry's, else empty."""
    vision: bool
    damaged: bool
    package_digest: str


def installed(daemon: Daemon, catalog: Catalog, records: Records) -> list[Installed]:
    """Return every model that the daemon lists."""
    result = []
    for listed in daemon.models():
        try:
            full_name(listed.name)
            shown = presence.made(daemon, listed.name)
        except ModelNotInstalled:
            if not presence.is_listed(daemon, listed.name):
                continue  # removed in between
            shown = None  # 0.24 says so also of one whose file is gone
        except (ModelBroken, UsageProblem):  # or a name that no daemon would take back
            shown = None
        package = shown.package() if shown else None
        whole = shown is not None and presence.whole(daemon, shown)
        recorded = records.get("installed", daemon.key, listed.name) is not None
        result.append(
            Installed(
                name=listed.name,
                size=listed.size,
                ours=is_ours(shown, catalog, records, daemon.key) if shown else recorded,
                catalog=catalog_name(shown, catalog, records, daemon.key)
                if whole and shown
                else "",
                vision=shown is not None and shown.has_vision,
                damaged=not whole,
                package_digest=package.digest() if package else "",
            )
        )
    return result


def the_only_one(daemon: Daemon, catalog: Catalog, records: Records) -> str:
    """Return the one vision model of ours that is installed.

    Raises:
        UsageProblem: there is none, or more than one; the hint lists them.
    """
    names = sorted(m.name for m in installed(daemon, catalog, records) if m.ours and m.vision)
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageProblem(
            f"no model of ours is installed at {daemon.host}",
            hint="Install one with `llava-ollama install`, or name another with `--model`",
        )
    shown = ", ".join(name.removesuffix(":latest") for name in names)
    raise UsageProblem(
        f"{len(names)} models of ours are installed", hint=f"Choose with `--model`: {shown}"
    )


@contextmanager
def did_you_mean(daemon: Daemon, name: str) -> Iterator[None]:
    """Where the daemon has no model `name`, say which of its names is the nearest."""
    try:
        yield
    except ModelNotInstalled as exc:
        names = [model.name.removesuffix(":latest") for model in daemon.models()]
        if name.removesuffix(":latest") in names:
            raise without_file(name) from exc
        if not (near := difflib.get_close_matches(name, names, n=1)):
            raise
        raise ModelNotInstalled(exc.message, hint=f"Did you mean `{near[0]}`?") from exc


def catalog_name(shown: Shown, catalog: Catalog, records: Records, host: str) -> str:
    """Return `MODEL QUANT` of the catalog entry whose whole package `shown` is, or an empty text.

    The whole package is files, template, system prompt and parameters.
    """
    return next((f"{m} {quant}" for m, quant in _equal(shown, catalog, records, host)), "")


def has_catalog_files(shown: Shown, catalog: Catalog, records: Records, host: str) -> bool:
    """Whether `shown` is made of a catalog entry's files, mended or not, whatever its words are."""
    made = records.mended()
    sources = tuple(made[x]["source"] if x in made else x for x in shown.sources)
    plain = replace(shown, sources=sources)
    return any(True for _ in _made_of(plain, catalog, records, host))


def is_ours(shown: Shown, catalog: Catalog, records: Records, host: str) -> bool:
    """Whether this tool installed the model.

    There is a record of this very package under this name; or, installed from elsewhere, it is a
    catalog entry's whole package under that entry's own name.
    """
    package = shown.package()
    if package is None:
        return False
    sent = replace(
        package,
        model=_source(records, host, package.model),
        projector=_source(records, host, package.projector),
    )
    record = records.get("installed", host, full_name(shown.name)) or {}
    if record.get("package") in {package.digest(), sent.digest()}:
        return True
    equal = _equal(shown, catalog, records, host)
    return full_name(shown.name) in {f"{model}-{quant}:latest" for model, quant in equal}


def _equal(
    shown: Shown, catalog: Catalog, records: Records, host: str
) -> Iterator[tuple[str, str]]:
    """Yield model and quant of the catalog entries whose whole package `shown` is."""
    package = shown.package()
    for model, quant, pins in _made_of(shown, catalog, records, host):
        try:
            wanted = planning.from_catalog(catalog, model, quant).package(*pins)
        except TemplateError:
            continue  # a template of the user's that is gone
        if package and replace(package, model=pins[0], projector=pins[1]) == wanted:
            yield model, quant


def _made_of(
    shown: Shown, catalog: Catalog, records: Records, host: str
) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Yield model, quant and digests of the catalog entries with the files of `shown`."""
    for entry in catalog.entries.values():
        for quant, file in entry.quants.items():
            if file.sha256 is None or entry.projector.sha256 is None:
                continue
            pins = (file.sha256, entry.projector.sha256)
            stored = tuple(records.stored(host, pin) for pin in pins)
            if shown.sources in {pins, stored}:
                yield entry.name, quant, pins


def _source(records: Records, host: str, digest: str) -> str:
    """Return what a rewriting daemon made the file `digest` of, where that is known."""
    rewritten = (r for r in records.all("rewritten") if r.get("stored") == digest)
    sources = [r["source"] for r in rewritten if "source" in r]
    return next((s for s in sources if records.stored(host, s) == digest), digest)
