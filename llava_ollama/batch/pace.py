"""How many questions a host is asked at once: what gives the most tokens per second.

    pace = Pace(start=remembered)
    while pace.level > in_flight: send(...)
    pace.answered(monotonic(), tokens)   # or pace.slower() when refused, pace.idle() when starved

Latency and errors do not tell that more at once is slower (a processor that two answers fight
over, immich-video-memory-generator#934); tokens per second do, in both directions. So a level is
doubled while they grow, then its neighbours are tried at growing intervals, and of levels that
are equally good the smallest is kept. No clock and no threads: the same calls, the same levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

GROWN = 1.03
"""What a higher level must gain; less is not worth the memory that it takes of the host."""
EQUAL = 0.99
"""What a lower level may lose."""
LOST = 0.6
"""A trial at this share of the rate before is ended without a whole window."""
NOISE = 0.3
"""Spread of one answer's share of the rate; a comparison of n answers is this / sqrt(n) vague."""
ENOUGH = 48
"""Answers after which a comparison that is still vague is decided by its middle."""
GAP = 32
"""Answers between two trials, or four rounds; doubled by each that fails, to 32 times as many."""
STALL = 4
"""A wait this many times longer than the next longest is no fault of the level."""
STARVED = 4
"""A window in which as many answers as one of so many left the level unfilled says nothing."""
RUNGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class Level(Protocol):
    """What a runner asks before it sends, and tells what came back."""

    @property
    def level(self) -> int:
        """How many questions may be with the host now."""
        ...

    @property
    def rate(self) -> float:
        """Tokens per second at the best level, 0 before there is a measurement."""
        ...

    def answered(self, now: float, tokens: int) -> None:
        """Note an answer of `tokens` at `now`, in seconds of any clock that does not jump."""
        ...

    def slower(self) -> None:
        """Note that the host refused a question because it has too many (a 503)."""
        ...

    def idle(self) -> None:
        """Note that fewer than `level` are with the host because there is nothing to send."""
        ...


@dataclass(frozen=True)
class Fixed:
    """A level that the user chose."""

    level: int
    rate: float = 0.0

    def answered(self, now: float, tokens: int) -> None:
        """Do nothing."""

    def slower(self) -> None:
        """Do nothing."""

    def idle(self) -> None:
        """Do nothing."""


@dataclass
class _Measured:
    """Answers at one level: how many, with how many tokens, in how many seconds."""

    answers: float = 0
    tokens: float = 0
    seconds: float = 0

    @property
    def rate(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def add(self, other: _Measured, most: float) -> None:
        """Count `other` in, and let what is older than `most` answers fade."""
        keep = min(1.0, max(0.0, most - other.answers) / self.answers) if self.answers else 0.0
        self.answers = self.answers * keep + other.answers
        self.tokens = self.tokens * keep + other.tokens
        self.seconds = self.seconds * keep + other.seconds


@dataclass
class _Window:
    """The answers since a level was filled; those on the way there are skipped."""

    skip: int
    size: int
    level: int
    last: float = 0.0
    starved: int = 0
    waits: list[tuple[float, int]] = field(default_factory=list)

    def add(self, now: float, tokens: int) -> _Measured | None:
        """Count an answer; return the whole once the window is full."""
        if self.skip > 0:
            self.skip -= 1
        else:
            self.waits.append((max(0.0, now - self.last), tokens))
        self.last = now
        return self._sum() if len(self.waits) >= self.size else None

    @property
    def is_void(self) -> bool:
        """Whether the level was not filled, more than for a moment now and then."""
        return self.starved * STARVED >= self.size

    def _sum(self) -> _Measured:
        waits = sorted(self.waits)
        # With one round of a level there is one long wait by nature: all answer at once.
        if len(waits) >= 2 * self.level and waits[-1][0] > STALL * waits[-2][0]:
            waits.pop()
        return _Measured(len(waits), sum(t for _, t in waits), sum(w for w, _ in waits))


class Pace:
    """A level for one host and one model that looks for its own best."""

    def __init__(self, start: int = 1, most: int = 64) -> None:
        start = max(1, min(start, most))
        self._rungs = sorted({rung for rung in RUNGS if rung < most} | {start, most})
        self._base = self._trial = self._rungs.index(start)
        # A remembered level is probably right; what would be bad is one that is far too high.
        self._up = self._far = start == 1
        self._gap, self._until = (0, 0) if start == 1 else (2 * self._least, self._round)
        self._known = _Measured()
        self._tried = _Measured()
        self._spent = 0
        self._grace = 0
        self._odd = 0
        self._since: tuple[float, int] | None = None
        self._window = self._filled(self.level)

    @property
    def level(self) -> int:
        """How many questions may be with the host now."""
        return self._rungs[self._trial]

    @property
    def settled(self) -> int:
        """The best level found so far, to be remembered for the next run."""
        return self._rungs[self._base]

    @property
    def rate(self) -> float:
        """Tokens per second at the settled level, 0 before there is a measurement."""
        return self._known.rate

    def answered(self, now: float, tokens: int) -> None:
        """Note an answer of `tokens` at `now`, in seconds of any clock that does not jump."""
        tokens = max(1, tokens)
        self._grace -= 1
        self._spent += 1
        measured = self._window.add(now, tokens)
        if self._trial != self._base and self._hopeless(now, tokens):
            self._failed()
        elif measured:
            self._window = _Window(0, self._round, self.level, last=now)
            self._judge(measured)
        elif self._trial != self._base and self._spent > 8 * max(ENOUGH, self.level):
            # Never filled for long enough: there is too little to send for such a level.
            self._failed()

    def slower(self) -> None:
        """Go down after a refusal; those that were already on their way then count as one."""
        if self._grace > 0:
            self._grace -= 1
        elif self._trial > self._base:
            self._failed()
        else:
            half = max(1, self.level // 2)
            self._base = max(i for i, rung in enumerate(self._rungs) if rung <= half)
            self._known = _Measured()
            self._up, self._far, self._gap = True, False, max(self._gap, self._least)
            self._go(self._base)

    def idle(self) -> None:
        """Note it: a level that is not filled says nothing about itself."""
        if self._window.skip > 0:
            return  # it is only just being filled
        self._window.starved += 1
        if self._window.is_void:
            self._window = self._filled(self.level)
            self._since = None

    def _judge(self, measured: _Measured) -> None:
        if self._trial == self._base:
            if self._changed(measured.rate):
                self._known = _Measured()
                self._gap, self._until, self._far = self._least, self._round, True
            self._known.add(measured, most=2 * self._enough)
            if self._spent >= self._until and self._known.answers >= min(self._until, ENOUGH):
                self._try()
            return
        self._tried.add(measured, most=1e9)
        ratio = self._tried.rate / self._known.rate
        bar = GROWN if self._trial > self._base else EQUAL
        answers = self._tried.answers, self._known.answers
        vague = NOISE * sum(1 / n for n in answers) ** 0.5
        if min(answers) >= self._enough:
            vague = 0.0
        if ratio >= bar + vague:
            self._won(ratio)
        elif ratio < bar - vague:
            self._failed()
        elif answers[0] > max(2 * answers[1], self.level) or answers[0] >= 2 * self._enough:
            self._unsure()

    def _changed(self, rate: float) -> bool:
        """Return whether the host is no longer what was measured, for two windows now."""
        known = self._known.rate
        odd = self._known.answers >= self._enough and not LOST * known <= rate <= known / LOST
        self._odd = self._odd + 1 if odd else 0
        if self._odd > 1:
            self._up = rate > known
        return self._odd > 1

    def _try(self) -> None:
        """Begin a trial of a neighbour; at an end of the ladder, of the one on the other side."""
        last = len(self._rungs) - 1
        if self._base == (last if self._up else 0):
            self._up, self._far = not self._up, False
        target = self._twice() if self._far else self._base + (1 if self._up else -1)
        if 0 <= target <= last and target != self._base:
            self._tried = _Measured()
            self._go(target)
        else:
            self._spent = 0

    def _twice(self) -> int:
        """Return the rung of about twice the level, or of about half."""
        level = self._rungs[self._base]
        if self._up:
            return max(i for i, rung in enumerate(self._rungs) if rung <= 2 * level)
        return min(i for i, rung in enumerate(self._rungs) if 2 * rung >= level)

    def _won(self, ratio: float) -> None:
        """Stay at the level that was tried, and look further that way; at once if much was won."""
        self._base, self._known = self._trial, self._tried
        self._far, self._gap, self._until = True, self._least, self._least
        self._spent = 0
        if ratio >= GROWN:
            self._try()

    def _failed(self) -> None:
        """Go back; look the other way after a longer while."""
        self._up, self._far = not self._up, False
        self._go(self._base)
        self._gap = min(32 * self._least, max(self._least, 2 * self._gap))
        self._until = self._gap

    def _unsure(self) -> None:
        """Go back to know the level before better, and then try again."""
        self._until = self._enough
        self._go(self._base)

    def _hopeless(self, now: float, tokens: int) -> bool:
        """Return whether the answers since the trial began came far too slowly."""
        if self._since is None:
            self._since = now, -tokens
        begun, sent = self._since
        self._since = begun, sent + tokens
        few = self._spent <= max(3, self._rungs[self._base])
        return not few and sent + tokens < LOST * self._known.rate * (now - begun)

    def _go(self, to: int) -> None:
        """Change the level; what is on its way at the old one does not count."""
        old, old_rung = self.level, self._trial
        self._trial = to
        self._spent = 0
        if to < old_rung:
            self._grace = old - 1
        self._since = None
        self._window = self._filled(max(old, self.level))

    def _filled(self, skip: int) -> _Window:
        return _Window(skip, self._round, self.level)

    @property
    def _round(self) -> int:
        """Answers of a window: whole rounds of the level, as they may all come at once."""
        return self.level * -(-4 // self.level)

    @property
    def _least(self) -> int:
        return max(GAP, 4 * self.level)

    @property
    def _enough(self) -> int:
        return max(ENOUGH, 2 * self.level)
