"""A host in a simulation: questions share it, and how much it does depends on how many they are."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
class Host:
    """One simulated host; `refuse` is how many it takes at most before it answers 503."""

    curve: Curve
    seed: int = 0
    spread: float = 0.5
    """Work of an answer is drawn between 1 - spread and 1 + spread of the mean."""
    mean: float = 10.0
    """Tokens of an answer."""
    refuse: int = 10**9
    change: tuple[float, Curve] | None = None
    """From this second on it has another curve."""
    start: float = 0.0

    def run(self, pace: Level, items: int) -> Iterator[float]:
        """Yield the second at which each item is answered."""
        draw = random.Random(self.seed)
        now, share, left = self.start, 0.0, items
        waiting: deque[int] = deque()
        working: list[tuple[float, int]] = []
        while left or working:
            while left and len(working) + len(waiting) < pace.level:
                if len(working) + len(waiting) >= self.refuse:
                    pace.slower()
                    break
                few = max(1, round(self.mean * draw.uniform(1 - self.spread, 1 + self.spread)))
                waiting.append(few)
                left -= 1
            if not left and len(working) + len(waiting) < pace.level:
                pace.idle()
            curve = self.change[1] if self.change and now >= self.change[0] else self.curve
            while waiting and len(working) < curve.slots:
                # Equal shares: it is over when everybody's share has grown by its work.
                tokens = waiting.popleft()
                heapq.heappush(working, (share + tokens, tokens))
            until, tokens = working[0]
            now += (until - share) * len(working) / curve.rate(len(working))
            share = until
            heapq.heappop(working)
            pace.answered(now, tokens)
            yield now

    def seconds(self, pace: Level, items: int) -> float:
        """Return how long all take."""
        return max(self.run(pace, items))


def share(
    host: Host, pace: Level, items: int, levels: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
) -> float:
    """Return the throughput of `pace` as a share of the best fixed level's."""
    best = min(host.seconds(Fixed(level), items) for level in levels)
    return best / host.seconds(pace, items)
