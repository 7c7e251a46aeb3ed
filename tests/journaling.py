"""A process that goes on with a run and is killed: `python -m tests.journaling RUN SEED`.

It hands what it takes to hosts that answer after a random while, and says in a file of its own, in
this order: what it is about to send, what it has sent, and what it knows to be committed.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import deque
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from llava_ollama.batch.journal import Config, Entry, Journal, JournalFeed
from llava_ollama.batch.work import Ask, Job, Outcome, Question, Seen

ASKS = tuple(Ask(prompt, options={"temperature": 0}) for prompt in ("What?", "How many?"))
CONFIG = Config("tiny", "a" * 64, ASKS)
PICTURES = 300
HOSTS = 6
SAID = "said.txt"


def expected(path: str, ask: int) -> str:
    """Return the answer that is right: equal pictures are the three of each `/p/N-...`."""
    return f"{path.split('-', maxsplit=1)[0]} {ask}"


def entries() -> list[Entry]:
    return [Entry(f"/p/{n // 3}-{n}.png", size=1, mtime_ns=1) for n in range(PICTURES)]


class Asking:
    """One run, up to its end or its death."""

    def __init__(self, journal: Journal, feed: JournalFeed, said: int, seed: int) -> None:
        self._journal, self._feed, self._said = journal, feed, said
        self._random = random.Random(seed)
        self._settled: deque[str] = deque()

    def run(self) -> None:
        threading.Thread(target=self._acknowledge, daemon=True).start()
        under_way: list[tuple[Job, list[Question]]] = []
        while under_way or self._feed.wait() is not None:
            for job in self._feed.take(HOSTS - len(under_way)):
                content = sha256(job.item.path.split("-")[0].encode()).hexdigest()
                self._feed.seen(Seen(job.item.id, content, 1, 1, 8, 8))
                under_way.append((job, list(job.questions)))
                self._next(*under_way[-1], content)
            time.sleep(self._random.uniform(0, 0.002))
            if under_way and self._random.random() < 0.9:
                job, left = under_way.pop(self._random.randrange(len(under_way)))
                if self._answer(job, left):
                    under_way.append((job, left))
        self._journal.flush()

    def _next(self, job: Job, left: list[Question], content: str) -> None:
        """Send the next question, or settle it by an equal picture's answer."""
        while left and (known := self._feed.answered(content, left[0].id)) is not None:
            question = left.pop(0)
            self._feed.settle(
                Outcome(job.item.id, question.id, "done", known.text, copied_from=known.copied_from)
            )
        if left:
            key = f"{job.item.path} {left[0].id} {job.crashes}"
            self._say(f"sending {key}")
            self._feed.sending(job.item.id, left[0].id)
            self._say(f"sent {key}")

    def _answer(self, job: Job, left: list[Question]) -> bool:
        """Settle what was sent, or give the job back; return whether there is more of it."""
        if left and self._random.random() < 0.1:
            self._say(f"back {job.item.path} {left[0].id}")
            self._feed.give_back(job.item.id)
            return False
        if left:
            question = left.pop(0)
            text = expected(job.item.path, question.id)
            self._feed.settle(Outcome(job.item.id, question.id, "done", text, "stop", 1, 0.1, "h"))
            self._settled.append(f"{job.item.path} {question.id}")
        self._next(job, left, sha256(job.item.path.split("-")[0].encode()).hexdigest())
        return bool(left)

    def _acknowledge(self) -> None:
        while True:
            before = [self._settled.popleft() for _ in range(len(self._settled))]
            self._journal.flush()
            for key in before:
                self._say(f"committed {key}")
            time.sleep(0.001)

    def _say(self, line: str) -> None:
        os.write(self._said, f"{line}\n".encode())


def main(run: Path, seed: int) -> None:
    said = os.open(run.parent / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(1, b"begun\n")
    with (
        Journal(run, CONFIG, state=run.parent / "state") as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        feed.fill(entries())
        Asking(journal, feed, said, seed).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
