"""The values that the room of weight files hands out, and what it asks of a ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from llava_ollama.progress import Reporter

if TYPE_CHECKING:
    from llava_ollama.catalog import WeightFile

Origin = Literal["bundled", "given", "cache", "downloaded", "mended"]
"""In this package; a path or folder of the user's; the Hub's own cache; our download folder, and
there a mended copy."""


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine whose bytes are proven; `size` in bytes, `sha256` in hex digits."""

    path: Path
    sha256: str
    size: int
    origin: Origin


@dataclass(frozen=True)
class Mending:
    """What is done to a published file: its own sha256, and in words what changes in it."""

    source_digest: str | None
    changes: tuple[str, ...]
    """Empty as long as the file is still on the Hub."""


@dataclass(frozen=True)
class Whereabouts:
    """Where a file is before anything is done; what a plan prints. Sizes in bytes."""

    file: WeightFile
    path: Path | None
    """None for a file that is still on the Hub."""
    size: int | None
    sha256: str | None
    """What it must have; None for a path of the user's, which has no pin."""
    origin: Origin | Literal["hub"]
    missing: int | None
    """What is still to be downloaded; None where the Hub does not tell the size."""
    mending: Mending | None = None
    """Set where `sha256` and `size` are those of a mended copy, and the rest is its original's."""


class Hashed(Protocol):
    """What is known of one file: sha256 in hex digits, size in bytes."""

    @property
    def sha256(self) -> str:
        """The digest."""

    @property
    def size(self) -> int:
        """The length."""


class Digests(Protocol):
    """What the ledger does: it knows files that have not changed since they were hashed."""

    def known(self, path: Path) -> Hashed | None:
        """Return what is known of the file, without reading it."""

    def digest(self, path: Path, reporter: Reporter) -> Hashed:
        """Return what is known, or read the file."""

    def hash(self, path: Path, reporter: Reporter) -> Hashed:
        """Read the file, whatever is known."""

    def arrived(self, path: Path, sha256: str) -> None:
        """Remember a file that was hashed while it was written."""
