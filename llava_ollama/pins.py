"""Pins: what is known of digests before a byte is read.

What the catalog pins, and what a rewriting daemon (0.30 to 0.34.0) was seen to make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llava_ollama.catalog import Catalog, WeightFile
from llava_ollama.daemon import Daemon
from llava_ollama.records import Records
from llava_ollama.weights.mended import mended_copy


@dataclass(frozen=True)
class Pin:
    """A file of the catalog with the digest that it must have."""

    label: str
    file: WeightFile
    library: str | None = None
    """A public tag that has it, with the digests of all its files."""
    wanted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Known:
    """What is known of digests before a byte is read: pins, and what a daemon made of them."""

    daemon: Daemon
    catalog: Catalog
    records: Records
    pins: Mapping[str, Pin]
    sources: Mapping[str, str]
    """What this daemon stored → of which file it made it, both as sha256."""

    @classmethod
    def of(cls, daemon: Daemon, catalog: Catalog, records: Records) -> Known:
        """Gather it."""
        sources = {
            r["stored"]: r["source"]
            for r in records.all("rewritten")
            if r.get("host") == daemon.key and r.keys() >= {"stored", "source"}
        }
        pins = _pins(catalog)
        return cls(daemon, catalog, records, {**_mended(pins, records), **pins}, sources)

    def source(self, sha256: str) -> str:
        """Return the digest of the file that a stored one was made of: mostly its own."""
        return self.sources.get(sha256, sha256)

    def label(self, sha256: str) -> str:
        """Return what the catalog calls the file, or an empty text."""
        pin = self.pins.get(self.source(sha256))
        return pin.label if pin else ""

    def recorded(self, name: str) -> bool:
        """Whether this tool installed the name."""
        return self.records.get("installed", self.daemon.key, name) is not None


def _pins(catalog: Catalog) -> dict[str, Pin]:
    pins: dict[str, Pin] = {}
    for entry in catalog.entries.values():
        projector = entry.projector
        for quant, file in entry.quants.items():
            both = frozenset(x.sha256 for x in (file, projector) if x.sha256)
            if file.sha256:
                label = f"{entry.name} {quant}"
                pins.setdefault(file.sha256, Pin(label, file, file.library, both))
            # Any public tag with the projector will do to get it from.
            if projector.sha256 and (projector.sha256 not in pins or file.library):
                label = f"{entry.name} projector"
                pins[projector.sha256] = Pin(label, projector, file.library, both)
    return pins


def _mended(pins: Mapping[str, Pin], records: Records) -> dict[str, Pin]:
    """Return the mended copies that were made on this machine: they can be made again."""
    made: dict[str, Pin] = {}
    for sha256, record in records.mended().items():
        source, layers = record["source"], record.get("layers", "")
        path = Path(record.get("path") or source)
        pin = pins.get(source) or Pin(path.name, WeightFile(path.name, path=path, sha256=source))
        original = replace(pin.file, vision_layers=None)  # the catalog may have learnt another
        copy = mended_copy(original, int(layers) if layers.isdecimal() else None)
        made[sha256] = Pin(f"{pin.label}, mended", replace(copy, sha256=sha256))
    return made
