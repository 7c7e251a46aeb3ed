"""Wakes all who wait for a change; they look for themselves whether it concerns them."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Bell:
    """Rung after every change of what the tasks of one event loop share.

    Whoever finds nothing to do waits without an `await` in between, so no ring is missed.
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for the next ring, or for so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._next.wait(), seconds)
