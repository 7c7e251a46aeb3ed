"""Benchmarks: each is a ratio of two things in one run, over several rounds, by its median.

    python -m tests.bench             # all; prints the README's table and writes it there

A figure holds for the machine that it was measured on; a ratio travels better than a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured ratio, and the bar that it is held to, if there is one."""

    what: str
    against: str
    ratio: float
    bar: float | None
    rounds: int

    def row(self) -> str:
        bar = "-" if self.bar is None else f"≤ {self.bar:.2f}"
        missed = " (missed)" if self.bar is not None and self.ratio > self.bar else ""
        ratio = f"{self.ratio:.2f}" if self.ratio >= 0.1 else f"{self.ratio:.2g}"
        return f"| {self.what} | {self.against} | {ratio} | {bar}{missed} |"


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
