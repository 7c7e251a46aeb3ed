"""Counts what a run has done, and how fast; a value without a clock of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

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
    totals: Totals = field(default_factory=Totals)
    """All but the seconds."""
    _steps: deque[tuple[float, int]] = field(default_factory=deque)

    def count(self, outcome: Outcome, now: float) -> None:
        """Count one outcome."""
        state = outcome.state if outcome.state in {"done", "failed", "retry"} else "gone"
        copied = outcome.copied_from is not None
        self._add(state)
        if copied:
            self._add("copied")
        else:
            self._add("tokens", outcome.tokens)
        if self._steps and now - self._steps[-1][0] < _STEP:
            self._steps[-1] = (self._steps[-1][0], self._steps[-1][1] + 1)
        else:
            self._steps.append((now, 1))

    def take_back(self) -> None:
        """Count an answer no longer."""
        self._add("done", -1)

    def _add(self, name: str, number: int = 1) -> None:
        self.totals = replace(self.totals, **{name: getattr(self.totals, name) + number})

    def rate(self, now: float) -> float:
        """Return the outcomes a second of late."""
        while self._steps and now - self._steps[0][0] > _LATELY:
            self._steps.popleft()
        span = min(_LATELY, now - self.begun)
        return sum(count for _, count in self._steps) / span if span > 0 else 0.0

    def counts(self, now: float) -> Totals:
        """Return the counts."""
        return replace(self.totals, seconds=now - self.begun)
