"""Asks: pictures are prepared ahead while hosts answer, each at its own pace.

A job is pulled by whichever host has room, so a fast one does more. What goes wrong is judged by
`failures`; here is what follows of it: the host is left alone for a while, the question is put off,
the picture is asked alone, or the answer is missing for good.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from llava_ollama.batch import pictures
from llava_ollama.batch.asking import Asker, is_repeatable
from llava_ollama.batch.bell import Bell
from llava_ollama.batch.events import Listener, Settled, nobody
from llava_ollama.batch.failures import Blame, Verdict, judge
from llava_ollama.batch.held import Held, Rack
from llava_ollama.batch.hosts import Host
from llava_ollama.batch.keeper import Keeper
from llava_ollama.batch.outcomes import Patience
from llava_ollama.batch.pictures import Thumbnail
from llava_ollama.batch.tally import Tally
from llava_ollama.batch.work import Feed, Job, Outcome, Question
from llava_ollama.errors import LlavaOllamaError
from llava_ollama.images import Vision

_READERS = 4
"""Threads that read and prepare: more than one, since disks and network folders are waited for."""
_MOST_TWINS = 1000
"""Jobs that wait for an equal picture's answers; they hold no pixels of their own."""
_CRASHES = 2
"""After which a picture is asked once on another host."""
_CONFIRM = 5.0
"""Seconds after which it is seen that hosts have the same model still."""
_SHORTEST = 0.01
"""Seconds between two questions to a feed that has nothing at present."""


class Runner:
    """Works off a feed; belongs to one event loop, and is used once."""

    def __init__(  # noqa: PLR0913 - keywords, each of them something a run decides
        self,
        keeper: Keeper,
        feed: Feed,
        vision: Vision,
        *,
        patience: Patience | None = None,
        thumbnail: Thumbnail | None = None,
        listener: Listener = nobody,
    ) -> None:
        self.hosts, self._keeper = keeper.hosts, keeper
        keeper.undo = self._undo
        self._feed, self._vision = feed, vision
        self._patience = patience or Patience()
        self._thumbnail, self._tell = thumbnail, listener
        self.tally = Tally(time.monotonic())
        self._readers = ThreadPoolExecutor(_READERS, "pictures")
        self._bell, self._asker, self._rack = Bell(), Asker(), Rack()
        # By identity: a question that was put off may come back while the picture's other is asked.
        self._mine: dict[int, Job] = {}
        self._stopping = False

    async def run(self) -> None:
        """Ask until the feed has nothing more; what is not settled at the end is given back.

        Raises:
            LlavaOllamaError: what ends the run.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                serving = [self._tasks.create_task(self._serve(host)) for host in self.hosts]
                serving.append(self._tasks.create_task(self._confirm()))
                await self._read()
                await self._keeper.confirm()
                for server in serving:
                    server.cancel()
        finally:
            # Not waited for: a thread may read from a network folder that does not answer.
            self._readers.shutdown(wait=False, cancel_futures=True)
            for job in self._mine.values():
                self._feed.give_back(job.item.id)

    def stop(self) -> None:
        """Hand out nothing more; `run` returns when what hosts have is answered."""
        self._stopping = True
        self._bell.ring()

    # Reading ahead

    async def _read(self) -> None:
        """Take jobs and have them prepared, until there are no more and all are settled."""
        while True:
            took = self._take()
            for job in took:
                self._tasks.create_task(self._prepare(job))
            asked = sum(host.asked for host in self.hosts)
            if self._stopping and not asked:
                return
            # Asked only where there is room: what waits to be taken is no reason to come back.
            pause = self._feed.wait() if self._room() > 0 else None
            if not self._mine and pause is None and not took:
                return
            if not took or self._room() <= 0:
                await self._bell.wait(None if pause is None else max(pause, _SHORTEST))

    def _take(self) -> list[Job]:
        room = 0 if self._stopping else self._room()
        took = self._feed.take(room) if room > 0 else []
        self._mine.update((id(job), job) for job in took)
        return took

    def _room(self) -> int:
        """Return how many jobs more may be read ahead: as many as are with hosts, and a few."""
        levels = sum(host.level for host in self.hosts if not host.out)
        asked = sum(host.asked for host in self.hosts)
        twins = self._rack.waiting
        ahead = len(self._mine) - asked - twins
        return levels + _READERS - ahead if twins < _MOST_TWINS else 0

    async def _prepare(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        try:
            ready = await loop.run_in_executor(
                self._readers, pictures.ready, job.item, self._vision, self._thumbnail
            )
        except LlavaOllamaError as exc:
            for question in job.questions:
                self._settle(job, self._patience.failed(job, question, judge(exc), exc))
            self._forget(job)
            return
        self._feed.seen(ready.seen)
        self._offer(Held(job, ready, deque(job.questions)))

    def _offer(self, held: Held) -> None:
        """Settle what an equal picture was answered already, and take in the rest."""
        for question in list(held.left):
            if is_repeatable(question.ask):
                known = self._feed.answered(held.sha256, question.id)
                if known is not None and known.state == "done":
                    self._close(held, question, known.copy(held.job.item.id, question.id))
        if held.left:
            self._rack.add(held)
            self._bell.ring()
        else:
            self._forget(held.job)

    # Asking

    async def _serve(self, host: Host) -> None:
        """Keep `host` busy."""
        while not host.out:
            if host.breaker.is_open or not host.met:
                await self._keeper.recover(host)
                self._bell.ring()
                continue
            free = host.free and not self._stopping
            held = self._rack.pick(host) if free else None
            if held is None:
                if free:
                    host.pace.idle()
                await self._bell.wait()
                continue
            host.asked += 1
            self._tasks.create_task(self._carry(host, held))

    async def _carry(self, host: Host, held: Held) -> None:
        """Ask `host` all that is left to be asked about one picture."""
        try:
            while held.left and self._goes_on(host) and await self._put(host, held):
                pass
        finally:
            host.asked -= 1
            host.lone = False
            self._bell.ring()
        if held.left:
            self._rack.back(held)
        else:
            self._finish(held)

    def _goes_on(self, host: Host) -> bool:
        return host.met and not self._stopping

    async def _put(self, host: Host, held: Held) -> bool:
        """Put the next question; return whether the host may be asked on about this picture."""
        question = held.left[0]
        self._feed.sending(held.job.item.id, question.id)
        begun = time.monotonic()
        try:
            said = await self._asker.ask(host.site.engine, question, held.ready.picture)
        except LlavaOllamaError as exc:
            return self._went_wrong(host, held, exc)
        now = time.monotonic()
        self._keeper.answered(host)
        host.answers += 1
        host.pace.answered(now, said.tokens)
        outcome = self._patience.answered(held.job, question, said)
        self._close(held, question, replace(outcome, seconds=now - begun, host=host.name))
        self._keeper.heard(host, question.id, held.sha256, said.text)
        return True

    # What follows

    def _went_wrong(self, host: Host, held: Held, error: LlavaOllamaError) -> bool:
        """Do what follows of a failure; return whether the host may be asked on."""
        question, verdict = held.left[0], judge(error)
        if verdict.blame is Blame.CRASH or (verdict.blame is Blame.LOST and held.is_suspect):
            return self._crashed(host, held, error)
        if verdict.blame in {Blame.HOST, Blame.LOST}:
            held.losses += verdict.blame is Blame.LOST
            self._keeper.failed(host, error)
            return False
        if verdict.kind == "timeout":
            self._keeper.failed(host, error)  # so that it is looked at
        else:
            self._keeper.answered(host)
        outcome = self._patience.failed(held.job, question, verdict, error)
        self._close(held, question, replace(outcome, host=host.name))
        return verdict.kind != "timeout"

    def _crashed(self, host: Host, held: Held, error: LlavaOllamaError) -> bool:
        """Have the picture asked alone: on this host, then once on another, then not any more.

        The canary is asked in between: where that crashes as well, it is not the picture's fault.
        """
        was_alone = held.is_suspect
        held.crashed.append(host.name)
        held.where = host
        self._keeper.doubt(host)
        others = [h for h in self.hosts if not h.out and h.name not in held.crashed]
        if was_alone and others and len(held.crashed) <= _CRASHES:
            held.where = others[0]
        elif was_alone:
            verdict = Verdict(Blame.LASTING, "crash")
            outcome = self._patience.failed(held.job, held.left[0], verdict, error)
            self._close(held, held.left[0], replace(outcome, host=host.name))
        return False

    def _close(self, held: Held, question: Question, outcome: Outcome) -> None:
        held.left.remove(question)
        held.settled[question.id] = outcome
        self._settle(held.job, outcome)

    async def _confirm(self) -> None:
        while True:
            await asyncio.sleep(_CONFIRM)
            await self._keeper.confirm()

    def _undo(self, outcome: Outcome) -> None:
        self._feed.settle(Outcome(outcome.item, outcome.ask, "pending"))
        self.tally.take_back()

    def _settle(self, job: Job, outcome: Outcome) -> None:
        self._feed.settle(outcome)
        if outcome.state == "done":
            self._keeper.trusted(outcome)
        self.tally.count(outcome, time.monotonic())
        self._tell(Settled(outcome, job.item.path))

    def _finish(self, held: Held) -> None:
        """Let the equal pictures have the answers; what is missing they are asked themselves."""
        self._forget(held.job)
        for twin in self._rack.done_with(held):
            for question in list(twin.left):
                known = held.settled.get(question.id)
                if known and (known.state == "done" or known.error_kind == "crash"):
                    self._close(twin, question, known.copy(twin.job.item.id, question.id))
            self._offer(twin)

    def _forget(self, job: Job) -> None:
        del self._mine[id(job)]
        self._bell.ring()
