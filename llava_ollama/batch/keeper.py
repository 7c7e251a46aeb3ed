"""Brings hosts into a run, and back into it: is it there, is it the same model, does it see?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from llava_ollama.batch.canary import shortened
from llava_ollama.batch.events import HostChanged, HostState, Listener, Warned, nobody
from llava_ollama.batch.hosts import Host, another
from llava_ollama.batch.watch import Watch
from llava_ollama.batch.work import Outcome
from llava_ollama.errors import (
    CheckFailed,
    DaemonBusy,
    DaemonError,
    DaemonUnreachable,
    LlavaOllamaError,
    UsageProblem,
)

Canary = Callable[[Host], Awaitable[None]]


async def blind_faith(_host: Host) -> None:
    """Ask no canary."""


@dataclass
class Keeper:
    """Looks after the hosts of a run."""

    hosts: Sequence[Host]
    digest: str | None = None
    """Of the run's model; None where nobody can tell."""
    canary: Canary = blind_faith
    wait: float = 600.0
    """Seconds without an answer of any host, after which the run ends."""
    tell: Listener = nobody
    undo: Callable[[Outcome], None] = lambda _outcome: None
    """Takes back what a host has said that may have been of another model by then."""
    _unsure: dict[str, list[Outcome]] = field(default_factory=dict)
    _watches: dict[str, Watch] = field(default_factory=dict)

    async def recover(self, host: Host) -> None:
        """Wait until `host` may be tried again, look at it once, and let it in if it is well.

        Raises:
            DaemonUnreachable: no host has answered for too long.
            CheckFailed: the model does not see.
            UsageProblem: no host has the run's model.
        """
        if host.breaker.is_open:
            # It may say that it is there, and answer nothing: as when its model was removed.
            self._check_outage()
            await asyncio.sleep(host.breaker.pause)
        was = host.state
        try:
            await host.site.look()
            if await self._is_same(host) and not host.met:
                await self.canary(host)
                host.met = True
        except CheckFailed as exc:
            self._leave_out(host, exc)
        except LlavaOllamaError as exc:
            self._missed(host, exc)
        else:
            host.breaker.seen()
            if was != host.state:
                self._changed(host)

    async def confirm(self) -> None:
        """See that the hosts still hold the run's model: one may be replaced under its name.

        Raises:
            UsageProblem: one holds another, and `undo` has had what it said since it did not.
        """
        for host in self.hosts:
            if host.met and not host.is_away:
                with suppress(DaemonError):  # it is asked again the next time
                    await self._is_same(host)

    def trusted(self, outcome: Outcome) -> None:
        """Note what a host has said, until it is confirmed that it holds the run's model."""
        self._unsure.setdefault(outcome.host, []).append(outcome)

    async def _is_same(self, host: Host) -> bool:
        """Return whether a host holds the run's model, or cannot tell."""
        if self.digest is None:
            return True
        said = len(self._unsure.get(host.name, ()))
        digest = await host.site.digest()
        if digest is None or digest == self.digest:
            del self._unsure.get(host.name, [])[:said]
            return True
        for outcome in self._unsure.pop(host.name, ()):
            self.undo(outcome)
        self._leave_out(host, another(host, None, self.digest))
        return False

    def failed(self, host: Host, error: LlavaOllamaError) -> None:
        """Note that the host did not take what it was asked."""
        was = host.state
        host.breaker.trip(time.monotonic(), error)
        if isinstance(error, DaemonBusy):
            host.pace.slower()
        else:
            host.pace.idle()
        if was not in {host.state, "trying"}:
            self._changed(host, error.message)

    def answered(self, host: Host) -> None:
        """Note that it did."""
        was = host.state
        host.breaker.answered()
        if was != host.state:
            self._changed(host)

    def heard(self, host: Host, ask: int, sha256: str, text: str) -> None:
        """Note an answer; the canary is asked again when too many are the same."""
        if self._watches.setdefault(host.name, Watch()).is_odd(ask, sha256, text):
            self.tell(
                Warned(
                    f"`{host.name}` keeps saying `{shortened(text)}` of different pictures;"
                    " it is tested",
                    "If they are alike, nothing is wrong; the run ends if the model does not see",
                )
            )
            self.doubt(host)

    def doubt(self, host: Host) -> None:
        """Have the canary asked again before anything else is."""
        host.met = False

    def _missed(self, host: Host, error: LlavaOllamaError) -> None:
        was = host.state
        host.breaker.trip(time.monotonic(), error)
        host.breaker.missed(error)
        # Whatever comes back may be another model, or another version of the daemon.
        host.met = False
        if was != host.state:
            self._changed(host, error.message)
        self._check_outage()

    def _check_outage(self) -> None:
        """Raise where all hosts have been away for too long."""
        left = [host for host in self.hosts if not host.out]
        times = [host.breaker.since for host in left]
        since = [time for time in times if time is not None]
        if any(host.asked for host in left) or len(since) < len(left):
            return
        if time.monotonic() - max(since) >= self.wait:
            error = next(host.breaker.error for host in left)
            why = f": {error.message}" if error else ""
            raise DaemonUnreachable(
                f"no host has answered for {self.wait:g} seconds{why}",
                hint="The run can go on later: start it again when a host is there",
            ) from error

    def _leave_out(self, host: Host, error: CheckFailed | UsageProblem) -> None:
        """Go on without `host`; raise `error` where it was the last, or did well before."""
        others = [other for other in self.hosts if not other.out and other is not host]
        if not others or host.answers:
            raise error
        host.out = True
        self._changed(host, error.message)
        self.tell(Warned(f"`{host.name}` is left out: {error.message}", error.hint or ""))

    def _changed(self, host: Host, reason: str = "") -> None:
        state: HostState = host.state
        self.tell(HostChanged(host.name, state, reason))
