"""A host in a simulation: questions share it, and how much it does depends on how many they are."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llava_ollama.batch.pace import Fixed, Level


@dataclass(frozen=True)
class Curve:
    """How much a host does: `rate` is tokens per second of all that it works on at once."""

    rate: Callable[[int], float]
    slots: int = 10**9
    """Questions that it works on at once; more wait for their turn."""


def slots(count: int, each: float = 10.0) -> Curve:
    """Return the curve of a host that works on `count` at once, equally fast."""
    return Curve(lambda at_once: each * at_once, count)


def points(known: dict[int, float]) -> Curve:
    """Return a curve through measured points; beyond the last it stays."""

    def at(at_once: int) -> float:
        low = max(n for n in known if n <= max(1, at_once))
        high = min((n for n in known if n >= at_once), default=low)
        share = (at_once - low) / (high - low) if high > low else 0.0
        return known[low] + share * (known[high] - known[low])

    return Curve(at)


OLLAMA = points({1: 61, 2: 109, 4: 119, 8: 116})
"""Of 0.34 with the tiny model, as measured once."""
CPU = points({1: 100, 2: 75, 4: 40, 8: 15, 16: 7})
"""Four at once are slower than one (461 s instead of 36 s in immich-video-memory-generator#934)."""


@dataclass
class Shared:
    """What a host works on at a time; the clock is whoever asks, so that it may be a real one."""

    curve: Curve
    share: float = 0.0
    """Tokens that each of those at work got so far, had it been there from the beginning."""
    now: float = 0.0
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    working: list[tuple[float, int]] = field(default_factory=list)
    """Share at which it is over, and the number it came with."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.working)

    def add(self, now: float, tokens: float, number: int) -> None:
        """Take in a question that will be answered with so many tokens."""
        self._forward(now)
        self.waiting.append((tokens, number))
        self._fill()

    def ends(self) -> float:
        """Return when the next answer is complete, if nothing else comes."""
        if not self.working:
            return math.inf
        return self.now + (self.working[0][0] - self.share) / self._each()

    def pop(self) -> int:
        """Go on to the next answer and return its number."""
        self._forward(self.ends())
        _, number = heapq.heappop(self.working)
        self._fill()
        return number

    def _each(self) -> float:
        return self.curve.rate(len(self.working)) / len(self.working)

    def _forward(self, now: float) -> None:
        if self.working:
            self.share += self._each() * (now - self.now)
        self.now = now

    def _fill(self) -> None:
        while self.waiting and len(self.working) < self.curve.slots:
            tokens, number = self.waiting.popleft()
            heapq.heappush(self.working, (self.share + tokens, number))


@dataclass
class Host:
    """One simulated host; `refuse` is how many it takes at most before it answers 503."""

    curve: Curve
    seed: int = 0
    spread: float = 0.5
    """Tokens of an answer are drawn between 1 - spread and 1 + spread of the mean."""
    mean: float = 10.0
    refuse: int = 10**9
    change: tuple[float, Curve] | None = None
    """From this second on it has another curve."""
    start: float = 0.0

    def run(self, pace: Level, items: int) -> Iterator[float]:
        """Yield the second at which each item is answered."""
        draw = random.Random(self.seed)
        shared, left = Shared(self.curve, now=self.start), items
        while left or shared:
            while left and len(shared) < pace.level:
                if len(shared) >= self.refuse:
                    pace.slower()
                    break
                few = max(1, round(self.mean * draw.uniform(1 - self.spread, 1 + self.spread)))
                shared.add(shared.now, few, few)
                left -= 1
            if not left and len(shared) < pace.level:
                pace.idle()
            if self.change and shared.now >= self.change[0]:
                shared.curve = self.change[1]
            tokens = shared.pop()
            pace.answered(shared.now, tokens)
            yield shared.now

    def seconds(self, pace: Level, items: int) -> float:
        """Return how long all take."""
        return max(self.run(pace, items))


def share(
    host: Host, pace: Level, items: int, levels: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
) -> float:
    """Return the throughput of `pace` as a share of the best fixed level's."""
    best = min(host.seconds(Fixed(level), items) for level in levels)
    return best / host.seconds(pace, items)
