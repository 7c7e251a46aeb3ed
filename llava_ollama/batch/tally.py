"""Counts what a run has done, and how fast; a value without a clock of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llava_ollama.batch.events import Totals
from llava_ollama.batch.work import Outcome

_LATELY = 60.0
"""Seconds of which the rate is the mean."""
_STEP = 0.5
"""Seconds of outcomes that are counted together."""


@dataclass
class Tally:
    """Counts outcomes; times are seconds of any clock."""

    begun: float
    done: int = 0
    failed: int = 0
    retry: int = 0
    gone: int = 0
    copied: int = 0
    tokens: int = 0
    _steps: deque[tuple[float, int]] = field(default_factory=deque)

    def count(self, outcome: Outcome, now: float) -> None:
        """Count one outcome."""
        match outcome.state:
            case "done":
                self.done += 1
            case "failed":
                self.failed += 1
            case "retry":
                self.retry += 1
            case _:
                self.gone += 1
        copied = outcome.copied_from is not None
        self.copied += copied
        self.tokens += 0 if copied else outcome.tokens
        if self._steps and now - self._steps[-1][0] < _STEP:
            self._steps[-1] = (self._steps[-1][0], self._steps[-1][1] + 1)
        else:
            self._steps.append((now, 1))

    def rate(self, now: float) -> float:
        """Return the outcomes a second of late."""
        while self._steps and now - self._steps[0][0] > _LATELY:
            self._steps.popleft()
        span = min(_LATELY, now - self.begun)
        return sum(count for _, count in self._steps) / span if span > 0 else 0.0

    def counts(self, now: float) -> Totals:
        """Return the counts."""
        return Totals(
            done=self.done,
            failed=self.failed,
            retry=self.retry,
            gone=self.gone,
            copied=self.copied,
            tokens=self.tokens,
            seconds=now - self.begun,
        )
