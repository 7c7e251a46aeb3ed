"""A run from its first look at the hosts to its last answer: what the command and scripts call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from llava_ollama.batch import canary
from llava_ollama.batch.events import HostLevel, Listener, Progress, Summary, Warned, nobody
from llava_ollama.batch.hosts import Host, another
from llava_ollama.batch.keeper import Keeper
from llava_ollama.batch.outcomes import Patience
from llava_ollama.batch.pictures import Thumbnail
from llava_ollama.batch.runner import Runner
from llava_ollama.batch.work import Feed
from llava_ollama.errors import (
    DaemonBusy,
    DaemonTimeout,
    DaemonUnreachable,
    LlavaOllamaError,
    ModelLoading,
)
from llava_ollama.images import Vision

GRACE = 10.0
"""Seconds that a run that is told to stop waits for the answers under way. A question that is
cancelled costs 0.34.4 a slot for good, now and then."""
_OFTEN = 1.0
"""Seconds between two words of how the run stands."""
_AWAY = (DaemonUnreachable, DaemonTimeout, DaemonBusy, ModelLoading)
"""What may pass by itself."""


@dataclass(frozen=True)
class Agreed:
    """What the hosts of a run have in common."""

    digest: str | None
    """Of the model; None where no host can tell."""
    vision: Vision


async def agree(hosts: Sequence[Host], *, wait: float = 600.0, tell: Listener = nobody) -> Agreed:
    """Ask all hosts which model they hold; those that are away may come later.

    Raises:
        UsageProblem: they hold different models.
        DaemonError: none has answered for `wait` seconds.
        LlavaOllamaError: what else is wrong with the only host.
    """
    begun, pause = time.monotonic(), 0.2
    while True:
        found = await asyncio.gather(*(_known(host) for host in hosts))
        there = [(host, known) for host, known in zip(hosts, found, strict=True) if known[1]]
        if there:
            break
        error = next(error for _, _, error in found if error)
        if not isinstance(error, _AWAY) or time.monotonic() - begun + pause > wait:
            raise error
        if pause == 0.2:  # noqa: PLR2004 - the first time
            tell(Warned(f"{error.message}; waiting for up to {wait:g} seconds", error.hint or ""))
        await asyncio.sleep(pause)
        pause = min(5.0, 2 * pause)
    told = [(host, digest) for host, (digest, _, _) in there if digest]
    for host, digest in told:
        if digest != told[0][1]:
            raise another(host, told[0][0], told[0][1])
    _tell_of_the_rest(hosts, found, tell)
    vision = there[0][1][1]
    assert vision is not None  # noqa: S101 - what `there` was chosen by
    return Agreed(told[0][1] if told else None, vision)


Known = tuple[str | None, Vision | None, LlavaOllamaError | None]


async def _known(host: Host) -> Known:
    try:
        await host.site.look()
        digest = await host.site.digest()
        return digest, Vision(await host.site.engine.image_size()), None
    except LlavaOllamaError as exc:
        return None, None, exc


def _tell_of_the_rest(hosts: Sequence[Host], found: Sequence[Known], tell: Listener) -> None:
    for host, (digest, _, error) in zip(hosts, found, strict=True):
        if error:
            tell(Warned(f"`{host.name}` is not there yet: {error.message}", error.hint or ""))
        elif digest is None and len(hosts) > 1:
            tell(Warned(f"`{host.name}` cannot tell which model it holds; it is taken at its word"))


@dataclass(frozen=True)
class Manner:
    """How a run goes."""

    patience: Patience = field(default_factory=Patience)
    canary: bool = True
    grace: float = GRACE
    thumbnail: Thumbnail | None = None
    left: Callable[[], int | None] = lambda: None
    """Returns how many questions are not settled."""


async def run(
    hosts: Sequence[Host],
    feed: Feed,
    agreed: Agreed,
    manner: Manner | None = None,
    *,
    tell: Listener = nobody,
) -> Summary:
    """Ask until `feed` has nothing more; cancelled, stop after the answers that are under way.

    To be called in the same event loop as `agree`. Engines are closed at the end, and what is not
    settled is given back to the feed.

    Raises:
        DaemonUnreachable: no host has answered for `patience.hosts` seconds.
        CheckFailed: the model does not see.
        UsageProblem: no host holds the model any more.
        CancelledError: it was told to stop, and has.
    """
    manner = manner or Manner()

    async def ask_canary(host: Host) -> None:
        await canary.check(host.site.engine, agreed.vision)

    keeper = Keeper(hosts, agreed.digest, wait=manner.patience.hosts, tell=tell)
    if manner.canary:
        keeper.canary = ask_canary
    runner = Runner(
        keeper,
        feed,
        agreed.vision,
        patience=manner.patience,
        thumbnail=manner.thumbnail,
        listener=tell,
    )
    report = asyncio.create_task(_report(runner, manner.left, tell))
    work = asyncio.create_task(runner.run())
    try:
        await _until_done(work, runner, manner.grace, tell)
    finally:
        report.cancel()
        for host in hosts:
            await host.site.close()
        tell(_progress(runner, manner.left))
    return Summary(runner.tally.counts(time.monotonic()), _levels(runner))


async def _until_done(
    work: asyncio.Task[None], runner: Runner, grace: float, tell: Listener
) -> None:
    """Wait for `work`; cancelled, let it finish what is under way, but not for ever."""
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        if work.done():
            raise
        runner.stop()
        if asked := sum(host.asked for host in runner.hosts):
            tell(Warned(f"it stops; {asked} that are asked may be answered, for {grace:g} seconds"))
        await asyncio.wait({work}, timeout=grace)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        raise
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what ended the run; tasks that fail together are one group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _report(runner: Runner, left: Callable[[], int | None], tell: Listener) -> None:
    while True:
        await asyncio.sleep(_OFTEN)
        tell(_progress(runner, left))


def _progress(runner: Runner, left: Callable[[], int | None]) -> Progress:
    now = time.monotonic()
    return Progress(runner.tally.counts(now), runner.tally.rate(now), left(), _levels(runner))


def _levels(runner: Runner) -> tuple[HostLevel, ...]:
    return tuple(host.told() for host in runner.hosts)
