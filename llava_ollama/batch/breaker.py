"""When a host that has failed is tried again; a value without a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass

from llava_ollama.errors import LlavaOllamaError

FIRST, LONGEST = 0.05, 15.0
"""Seconds before a host is asked whether it is there: a single 503 costs no more than the first."""


@dataclass
class Breaker:
    """Open after a failure of the host, half-open once it was seen, closed when it has answered."""

    first: float = FIRST
    longest: float = LONGEST
    is_open: bool = False
    since: float | None = None
    """The time of the first failure after which nothing was answered; None while all is well."""
    error: LlavaOllamaError | None = None
    """The last failure."""
    _failures: int = 0

    @property
    def is_closed(self) -> bool:
        """Whether as much may be asked at once as the host's pace allows."""
        return self.since is None

    @property
    def pause(self) -> float:
        """Seconds to wait before the host is looked at."""
        return min(self.longest, self.first * 2.0 ** min(self._failures - 1, 30))

    def trip(self, now: float, error: LlavaOllamaError) -> None:
        """Note a failure; several of requests that were under way together count as one."""
        self.error = error
        if self.since is None:
            self.since = now
        if not self.is_open:
            self.is_open = True
            self._failures += 1

    def missed(self, error: LlavaOllamaError) -> None:
        """Note that the host was looked at and is not there."""
        self.error = error
        self._failures += 1

    def seen(self) -> None:
        """Note that the host is there: one request may find out whether it answers."""
        self.is_open = False

    def answered(self) -> None:
        """Note an answer."""
        self.is_open, self.since, self.error, self._failures = False, None, None, 0
