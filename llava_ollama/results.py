"""What an install came to."""

from __future__ import annotations

from dataclasses import dataclass

from llava_ollama.daemon import Shown
from llava_ollama.package import Package
from llava_ollama.planning import InstallPlan, Role
from llava_ollama.transfer import Brought, How


@dataclass(frozen=True)
class InstalledPart:
    """One installed file: the digest of its source, and the digest that the daemon keeps."""

    role: Role
    source_digest: str
    """The published one, also where a mended copy was made of it."""
    stored_digest: str
    transfer: How
    """How its bytes got into the daemon."""
    bytes_written: int
    """A mended copy's making included."""
    mended_digest: str | None = None
    """Of the mended copy that was sent, where one was made."""


@dataclass(frozen=True)
class InstallResult:
    """What `apply()` did; `changed` is False when all was there already."""

    name: str
    changed: bool
    package_digest: str
    parts: tuple[InstalledPart, ...]
    seconds: float


def installed_parts(
    plan: InstallPlan, package: Package, shown: Shown, brought: tuple[Brought, Brought]
) -> tuple[InstalledPart, ...]:
    """Return what became of each part: what was sent, what is kept, and how it came there."""
    parts, given = [], (package.model, package.projector)
    for part, sent, stored, by in zip(plan.parts, given, shown.sources, brought, strict=True):
        source, written = (part.mending and part.mending.source_digest) or sent, by.written
        if sent != source and by.how != "there":
            written += part.size or 0
        copy = sent if sent != source else None
        parts.append(InstalledPart(part.role, source, stored, by.how, written, copy))
    return tuple(parts)
