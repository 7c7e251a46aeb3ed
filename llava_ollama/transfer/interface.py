"""Transfer: verified bytes → present in the daemon. The seam, its values and the choice.

After `bring` the daemon answers for the blob, and the bytes are right. What it has already is
skipped by every way. Registering is none of this: one `create` writes template, parameters and
manifest, and `settle` comes after it, since some ways leave something to be looked after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from llava_ollama.errors import StoreError
from llava_ollama.progress import Reporter

Name = Literal["link", "upload", "pull"]
How = Literal["there", "reflink", "hard link", "copy", "upload", "pull"]


@dataclass(frozen=True)
class Blob:
    """A weight file to be brought: what it must have, and where it is."""

    path: Path | None
    """None while it is still on the Hub, and when the daemon itself is to fetch it."""
    sha256: str
    size: int


@dataclass(frozen=True)
class Cost:
    """What a way needs, in bytes: read from this disk, written to any, fetched from elsewhere."""

    read: int = 0
    written: int = 0
    fetched: int = 0


@dataclass(frozen=True)
class Brought:
    """What was done for one blob, in bytes."""

    how: How
    read: int = 0
    written: int = 0

    def then(self, again: Brought) -> Brought:
        """Return this and another try for the same blob as one; the last way used counts."""
        how = self.how if again.how == "there" else again.how
        return Brought(how, self.read + again.read, self.written + again.written)


THERE = Brought("there")


class Transfer(Protocol):
    """One way. `bring` may be called from several threads, for different blobs."""

    @property
    def name(self) -> Name:
        """What `--transfer` calls it."""

    def why_not(self, blob: Blob) -> str | None:
        """Return in one line why it cannot bring the blob, or None. Only reads."""

    def cost(self, blob: Blob) -> Cost:
        """Return what `bring` would cost at most, getting the file here included. Only reads."""

    def bring(self, blob: Blob, reporter: Reporter) -> Brought:
        """Make the daemon hold the blob, whole or not at all.

        Raises:
            ChecksumMismatch: the file's bytes are not the blob's; none of them have arrived.
            NotEnoughSpace: the disk that is written to is full.
            StoreError: the store cannot be written or the file cannot be read.
            DaemonError: the daemon did not take it.
        """

    def settle(self, blobs: Sequence[Blob], reporter: Reporter, *, registered: bool) -> None:
        """Look after the blobs once more, when `create` is over or given up (not `registered`)."""


@dataclass(frozen=True)
class Choice:
    """The cheapest possible way, and of every other one why it was passed over."""

    transfer: Transfer
    cost: Cost
    passed_over: tuple[tuple[Name, str], ...]


def choose(transfers: Sequence[Transfer], blob: Blob) -> Choice:
    """Return the way that fetches, writes and then reads least; the first of those alike.

    Raises:
        StoreError: none is possible.
    """
    refusals = [(transfer, transfer.why_not(blob)) for transfer in transfers]
    costs = {t.name: t.cost(blob) for t, refusal in refusals if refusal is None}
    if not costs:
        raise _closed(refusals)
    best = min(costs, key=lambda name: _order(costs[name]))
    passed = tuple(
        (t.name, refusal or _dearer(costs[t.name], costs[best]))
        for t, refusal in refusals
        if t.name != best
    )
    chosen = next(t for t in transfers if t.name == best)
    return Choice(chosen, costs[best], passed)


def _closed(refusals: Sequence[tuple[Transfer, str | None]]) -> StoreError:
    """Return the error for a way that the user has named: of all, an upload is always possible."""
    said = "; ".join(f"{way.name}: {refusal}" for way, refusal in refusals)
    linking = any(way.name == "link" for way, _ in refusals)
    return StoreError(
        f"the way that `--transfer` names is not open ({said})",
        hint="Name the daemon's models folder with `OLLAMA_MODELS`, or leave `--transfer` out"
        if linking
        else "Leave `--transfer` out",
    )


def _order(cost: Cost) -> tuple[int, int, int]:
    return cost.fetched, cost.written, cost.read


def _dearer(cost: Cost, best: Cost) -> str:
    """Say in what a possible way is dearer than the one that was chosen."""
    for verb, ours, least in (
        ("fetches", cost.fetched, best.fetched),
        ("writes", cost.written, best.written),
        ("reads", cost.read, best.read),
    ):
        if ours != least:
            return f"{verb} {ours:,} bytes instead of {least:,}"
    return "costs the same"
