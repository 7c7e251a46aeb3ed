"""Notices the silent failure: different pictures keep getting the same answer.

That may also be how the pictures are, or what was asked: so it is a reason to ask the canary again,
and no more.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

IN_A_ROW = 8
"""Different pictures with the same sentence."""
SHORT_IN_A_ROW = 48
"""The same of an answer that may well be right for all of them, such as `no`."""
SHORT = 4
"""Words; a shorter answer is one out of a few."""
SHARE, OF = 30, 50
"""So many of the last so many have the same sentence, others in between."""


@dataclass
class _Stream:
    """The answers to one question."""

    last: str = ""
    pictures: set[str] = field(default_factory=set)
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=OF))
    factor: int = 1
    """Doubled by each time that the canary was asked for nothing."""


@dataclass
class Watch:
    """Hears all answers of one host."""

    _streams: dict[int, _Stream] = field(default_factory=dict)

    def is_odd(self, ask: int, sha256: str, text: str) -> bool:
        """Note the answer to `ask` about a picture; return whether it came too often."""
        stream = self._streams.setdefault(ask, _Stream())
        if text != stream.last:
            stream.last, stream.pictures = text, set()
        stream.pictures.add(sha256)
        is_short = len(re.findall(r"\w+", text)) < SHORT
        if not is_short:
            stream.recent.append(text)
        most = (SHORT_IN_A_ROW if is_short else IN_A_ROW) * stream.factor
        often = not is_short and stream.recent.count(text) >= SHARE * stream.factor
        if len(stream.pictures) < most and not often:
            return False
        stream.factor *= 2
        stream.recent.clear()
        return True
