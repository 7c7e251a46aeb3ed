"""Benchmarks: each is a ratio of two things in one run, over several rounds, by its median.

    python -m tests.bench             # all; prints the README's table and writes it there
    python -m tests.bench memory      # some of them, whose rows are then new

A figure holds for the machine that it was measured on; a ratio travels better than a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured ratio, and the bar that it is held to, if there is one.

    With a `unit` it is no ratio but an amount, which no other program is held against.
    """

    what: str
    against: str
    ratio: float
    bar: float | None
    rounds: int
    unit: str = ""

    def row(self) -> str:
        bar = "-" if self.bar is None else f"≤ {self._text(self.bar)}"
        missed = " (missed)" if self.bar is not None and self.ratio > self.bar else ""
        return f"| {self.what} | {self.against} | {self._text(self.ratio)} | {bar}{missed} |"

    def _text(self, value: float) -> str:
        if self.unit:
            return f"{value:.0f} {self.unit}"
        return f"{value:.2f}" if value >= 0.1 or value == self.bar else f"{value:.2g}"


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int
) -> tuple[float, Sequence[float]]:
    """Run the two in turn and return the median of the ratios, pair by pair, and all of them."""
    ratios = [seconds(ours) / seconds(theirs) for _ in range(rounds)]
    return statistics.median(ratios), ratios


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
