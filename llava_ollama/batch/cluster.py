"""A run on a Ray cluster: this process has the journal, each node has a `Captioner`.

Ray starts the processes, carries the messages and tells who has died (`batch/crew.py`). What to
ask, how fast, and what to think of a failure is the runner's business on each node, as it is on
one machine. A node has only as many pictures as it works off in a few seconds, so a fast one does
more and the end of a run is short; what a lost node had is given out again.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

from llava_ollama.batch import roster
from llava_ollama.batch.captioner import WAIT, Greeting, Seat
from llava_ollama.batch.crew import Crew, Ended
from llava_ollama.batch.events import (
    HostChanged,
    HostLevel,
    Listener,
    Progress,
    Settled,
    Summary,
    Warned,
    nobody,
)
from llava_ollama.batch.journal import Entry
from llava_ollama.batch.local import UNKNOWN, Batch, begun_with, opened
from llava_ollama.batch.nodes import Node, Out
from llava_ollama.batch.pictures import Thumbnail
from llava_ollama.batch.relay import Back, Note, Sending
from llava_ollama.batch.roster import Post, Roster
from llava_ollama.batch.run import GRACE
from llava_ollama.batch.tally import Tally
from llava_ollama.batch.thumbnails import thumbnail
from llava_ollama.batch.work import Feed, Job, Outcome, Question, Seen

_OFTEN = 1.0
"""Seconds between two words of how the run stands."""
_TURN, _SHORTEST = 0.2, 0.01
"""Seconds of waiting for a word, at most and at least."""
_LOSSES = 2
"""Processes that died with a picture, after which it is not asked any more."""
_MISSES = 2
"""Nodes that do not find a picture, after which it is gone."""
DIED = "the process that was asked about it died, twice"


def describe(
    batch: Batch,
    address: str,
    seat: Seat,
    entries: Iterable[Entry] = (),
    *,
    tell: Listener = nobody,
) -> Summary:
    """Begin a run or go on with it, as `local.describe` does, on the Ray cluster at `address`.

    Raises:
        UsageProblem: the run was begun otherwise or is under way, or nodes hold different models.
        DaemonUnreachable: there is no cluster, or no node has answered for `batch.wait` seconds.
        EngineUnavailable: Ray is not installed.
        LlavaOllamaError: no node has the model, or the journal cannot be written.
    """
    seat = replace(seat, concurrency=batch.concurrency)
    with Cluster(address, seat, wait=batch.wait, thumbnail=thumbnail, tell=tell) as cluster:
        begun = begun_with(batch.run)
        known = begun.model_digest if begun else UNKNOWN
        digest = cluster.agree(None if known == UNKNOWN else known)
        with opened(batch, digest, entries, tell) as book:
            return cluster.run(book.feed, left=book.left)


class Cluster:
    """The nodes of a Ray cluster that have the model; a context manager."""

    def __init__(
        self,
        address: str,
        seat: Seat,
        *,
        wait: float = 600.0,
        thumbnail: Thumbnail | None = None,
        tell: Listener = nobody,
    ) -> None:
        """`address` is `auto` or `host:port`; `wait` is in seconds without a node that answers."""
        self._address, self._wait, self._tell = address, wait, tell
        self._keywords = {**asdict(seat), "wait": min(wait, WAIT), "thumbnail": thumbnail}
        self._losses: Counter[int] = Counter()
        self._unseen: Counter[int] = Counter()
        self._suspects: deque[Job] = deque()
        self._told = 0.0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            LlavaOllamaError: see `Crew`.
        """
        self._crew = Crew(self._address, self._keywords)
        self._open.callback(self._crew.close)
        self._roster = Roster(self._crew, self._wait, self._tell)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.close()

    def agree(self, digest: str | None = None) -> str | None:
        """Return the model digest that the nodes have in common: `digest`, if it is given.

        Nodes without the model, and with another than `digest`, are left out with a note.

        Raises:
            UsageProblem: `digest` is not given, and the nodes hold different models.
            LlavaOllamaError: no node has it.
        """
        self._roster.agree(digest)
        return self._roster.digest

    def run(self, feed: Feed, *, left: Callable[[], int | None] = lambda: None) -> Summary:
        """Ask until `feed` has nothing more; what is not settled at the end is given back.

        `left` returns how many questions are not settled. Ctrl-C lets hosts answer what they have.

        Raises:
            LlavaOllamaError: no node has answered for the time to wait, or none can.
            KeyboardInterrupt: it was Ctrl-C, and all is given back.
        """
        self._tally, self._left = Tally(time.monotonic()), left
        try:
            self._work(feed)
        except KeyboardInterrupt:
            self._stop()
            self._work(feed, until=time.monotonic() + GRACE)
            raise
        finally:
            self._take_back(feed)
        self._report(now=True)
        return Summary(self._tally.counts(time.monotonic()), self._levels())

    def _work(self, feed: Feed, until: float = math.inf) -> None:
        while not self._is_done(feed) and time.monotonic() < until:
            self._roster.look()
            self._hand_out(feed)
            self._listen(feed)
            self._report()

    def _stop(self) -> None:
        self._roster.is_closed = True
        for post in self._roster:
            if post.member is not None:
                self._crew.stop(post.member)

    # The steps of a turn

    def _is_done(self, feed: Feed) -> bool:
        if any(post.node.out for post in self._roster):
            return False
        return self._roster.is_closed or (not self._suspects and feed.wait() is None)

    def _hand_out(self, feed: Feed) -> None:
        now = time.monotonic()
        ready = [post for post in self._roster if post.is_ready and not self._roster.is_closed]
        # Of the suspects one at a time is asked: by the node that is the first to have nothing.
        emptiest = (
            min(ready, key=lambda post: len(post.node.out)) if ready and self._suspects else None
        )
        for post in ready:
            if post is emptiest:
                jobs = [] if post.node.out else [self._suspects.popleft()]
            else:
                room = post.node.room(now)
                jobs = feed.take(room) if room > 0 else []
            if jobs and post.member is not None:
                post.node.hand(jobs, alone=post is emptiest)
                self._crew.give(post.member, jobs)

    def _listen(self, feed: Feed) -> None:
        """Take in what members say; wait for it, but not so long that nobody gets more work."""
        wait = feed.wait()
        pause = _TURN if wait is None else max(_SHORTEST, min(_TURN, wait))
        for member, word in self._crew.hear(pause):
            post = self._roster.posts[member.place.id]
            match word:
                case Greeting():
                    self._roster.greeted(post, word)
                case Ended():
                    self._ended(post, word, feed)
                case _:
                    for note in word:
                        self._take_in(post, note, feed)

    # What comes of it

    def _take_in(self, post: Post, note: Note, feed: Feed) -> None:
        node = post.node
        match note:
            case HostLevel():
                node.level = note
            case HostChanged():
                self._tell(replace(note, name=node.host))
            case Warned():
                self._tell(replace(note, message=f"`{node.name}`: {note.message}"))
            case _ if note.item not in node.out:
                pass  # it was taken away already
            case Sending():
                node.sending(note.item, note.ask)
                feed.sending(note.item, note.ask)
            case Seen():
                node.blind = 0
                feed.seen(note)
            case Back():
                node.out.pop(note.item)
                feed.give_back(note.item)
            case Outcome() if note.state == "gone" and self._is_here(node.out[note.item]):
                self._missed(post, note.item, feed)
            case Outcome():
                self._settle(node, replace(note, host=note.host and node.host), feed)

    def _settle(self, node: Node, outcome: Outcome, feed: Feed) -> None:
        now, path = time.monotonic(), node.out[outcome.item].job.item.path
        feed.settle(outcome)
        node.settled(outcome, now)
        self._tally.count(outcome, now)
        self._tell(Settled(outcome, path))

    def _is_here(self, out: Out) -> bool:
        """Whether a picture that a node does not find is here, and may be found by another."""
        item = out.job.item
        return self._unseen[item.id] < _MISSES and Path(item.path).exists()

    def _missed(self, post: Post, item: int, feed: Feed) -> None:
        self._unseen[item] += 1
        post.node.blind += 1
        post.node.out.pop(item)
        feed.give_back(item)
        if post.node.is_blind:
            self._give_back(post, feed)
            self._roster.leave_out(post, roster.no_pictures(post.node.name))

    def _ended(self, post: Post, ended: Ended, feed: Feed) -> None:
        """Give out again what a member had that is through."""
        is_lost = ended.is_lost or not self._roster.is_there(post)
        if ended.died and not is_lost:
            for out in post.node.with_host():
                self._suspect(post.node, out, feed)
        self._give_back(post, feed)
        if is_lost:
            self._roster.leave_out(post, roster.lost(post.node.name))
        elif ended.died:
            self._roster.died(post, ended.died)
        else:
            self._roster.leave_out(post, ended.error)

    def _suspect(self, node: Node, out: Out, feed: Feed) -> None:
        """Have a picture asked alone that a process died of, or died beside; then not any more."""
        item = out.job.item.id
        self._losses[item] += 1
        if self._losses[item] < _LOSSES:
            self._suspects.append(out.rest())
            del node.out[item]
            return
        for question in out.rest().questions:
            self._settle(node, _killer(item, question, node.host), feed)

    def _give_back(self, post: Post, feed: Feed) -> None:
        for item in post.node.out:
            feed.give_back(item)
        post.node.out.clear()

    def _take_back(self, feed: Feed) -> None:
        for post in self._roster:
            self._give_back(post, feed)
        while self._suspects:
            feed.give_back(self._suspects.popleft().item.id)

    def _report(self, *, now: bool = False) -> None:
        moment = time.monotonic()
        if now or moment - self._told >= _OFTEN:
            self._told = moment
            counts, rate = self._tally.counts(moment), self._tally.rate(moment)
            self._tell(Progress(counts, rate, self._left(), self._levels()))

    def _levels(self) -> tuple[HostLevel, ...]:
        return tuple(post.told() for post in self._roster)


def _killer(item: int, question: Question, host: str) -> Outcome:
    return Outcome(
        item=item,
        ask=question.id,
        state="failed",
        host=host,
        attempts=question.attempts + 1,
        error_kind="crash",
        error=DIED,
    )
