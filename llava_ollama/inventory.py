"""What a daemon has, and which of it is ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llava_ollama import modelfile
from llava_ollama.catalog import Catalog
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.errors import ModelBroken, ModelNotInstalled, UsageProblem
from llava_ollama.records import Records


@dataclass(frozen=True)
class Installed:
    """One model of the daemon."""

    name: str
    size: int
    ours: bool
    """Installed by this tool, here or elsewhere: known by its record or by its digests."""
    catalog: str
    """`MODEL QUANT` where its files are a catalog entry's, else empty."""
    vision: bool
    damaged: bool
    package_digest: str


def installed(daemon: Daemon, catalog: Catalog, records: Records) -> list[Installed]:
    """Return every model that the daemon lists."""
    result = []
    for listed in daemon.models():
        try:
            shown = daemon.show(listed.name)
        except ModelNotInstalled:
            continue  # removed in between
        except ModelBroken:
            shown = None
        package = shown.package() if shown else None
        recorded = records.get("installed", daemon.host, listed.name) is not None
        result.append(
            Installed(
                name=listed.name,
                size=listed.size,
                ours=is_ours(shown, catalog, records, daemon.host) if shown else recorded,
                catalog=catalog_name(shown, catalog, records, daemon.host) if shown else "",
                vision=shown is not None and shown.has_vision,
                damaged=shown is None,
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
        if not (near := difflib.get_close_matches(name, names, n=1)):
            raise
        raise ModelNotInstalled(exc.message, hint=f"Did you mean `{near[0]}`?") from exc


def catalog_name(shown: Shown, catalog: Catalog, records: Records, host: str) -> str:
    """Return `MODEL QUANT` of the catalog files that `shown` is made of, or an empty text."""
    for entry in catalog.entries.values():
        for quant, file in entry.quants.items():
            pins = (file.sha256, entry.projector.sha256)
            stored = tuple(_stored(records, host, pin) for pin in pins)
            if None not in pins and shown.sources in {pins, stored}:
                return f"{entry.name} {quant}"
    return ""


def is_ours(shown: Shown, catalog: Catalog, records: Records, host: str) -> bool:
    """Whether this tool installed the model: by its record, or its catalog files and template."""
    if records.get("installed", host, full_name(shown.name)):
        return True
    same_words = shown.template == modelfile.chat_template()
    return same_words and bool(catalog_name(shown, catalog, records, host))


def _stored(records: Records, host: str, digest: str | None) -> str | None:
    record = records.get("rewritten", host, digest) if digest else None
    return record["stored"] if record else digest
