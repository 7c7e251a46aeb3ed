"""Processes that write to a journal are killed at random instants; what was committed is there."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import groupby
from pathlib import Path

import pytest

from llava_ollama.batch.journal import Journal, JournalFeed, Reading
from llava_ollama.batch.work import Job, Outcome
from tests.journaling import ASKS, CONFIG, PICTURES, SAID, entries, expected

ROOT = Path(__file__).parent.parent
LONGEST = 0.5
"""Seconds after which a process is killed at the latest."""


def start(run: Path, seed: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.journaling", str(run), str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


class Told:
    """What a process said of itself before it died."""

    def __init__(self, run: Path) -> None:
        self.committed: set[tuple[str, int]] = set()
        self.order: list[tuple[str, int, int]] = []
        certain: dict[tuple[str, int], bool] = {}
        for line in (run.parent / SAID).read_text().splitlines():
            word, path, ask, *more = line.split()
            key = (path, int(ask))
            if word == "committed":
                self.committed.add(key)
            elif word == "back":
                certain[key] = False
            else:
                certain[key] = word == "sent"
                if word == "sending":
                    self.order.append((*key, int(more[0])))
        self.sent = {key for key, sure in certain.items() if sure}
        self.maybe = set(certain)


def answers(run: Path) -> dict[tuple[str, int], str]:
    """Return the committed answers; see that no row is there twice."""
    with Reading(run) as view:
        rows = list(view.rows())
        counted = {state: n for state, n in view.counts().states.items() if n}
    keys = [(row.path, row.ask) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.state for row in rows} <= {"pending", "done"}
    done = {(row.path, row.ask): row.text for row in rows if row.state == "done"}
    assert counted.get("done", 0) == len(done)
    assert sum(counted.values()) == len(rows)
    for (path, ask), text in done.items():
        assert text == expected(path, ask)
    return done


def crashes(run: Path) -> dict[str, int]:
    """Open the run, as the next process would, and return how often each was in flight."""
    with (
        Journal(run, CONFIG, state=run.parent / "state"),
        closing(sqlite3.connect(run / "journal.sqlite3")) as db,
    ):
        return {path.decode(): n for path, n in db.execute("SELECT path, crashes FROM item")}


@pytest.mark.parametrize("kills", [30, pytest.param(300, marks=pytest.mark.soak)])
def test_nothing_is_lost_or_done_twice(tmp_path: Path, kills: int) -> None:
    run, chance = tmp_path / "run", random.Random(kills)
    done: dict[tuple[str, int], str] = {}
    counted: dict[str, int] = {}
    hits = 0
    for seed in range(kills):
        if len(done) == PICTURES * len(ASKS):
            run = tmp_path / f"run {seed}"
            run.mkdir()
            done, counted = {}, {}
        process = start(run, seed)
        time.sleep(chance.uniform(0, LONGEST))
        process.kill()
        hits += process.wait() == -signal.SIGKILL
        process.communicate()
        told, before = Told(run), done
        check_suspects(told, counted)
        after = crashes(run)
        done = answers(run)
        assert told.committed <= done.keys()
        assert before.keys() <= done.keys()
        assert not before.keys() & {(path, ask) for path, ask, _ in told.order}
        grown = {path for path, n in after.items() if n > counted.get(path, 0)}
        assert all(n - counted.get(path, 0) <= 1 for path, n in after.items())
        assert {path for path, _ in told.sent - done.keys()} <= grown
        assert grown <= {path for path, _ in told.maybe - done.keys()}
        assert crashes(run) == after  # a death counts once
        counted = after
    assert hits > kills / 2
    process = start(run, kills)
    assert process.wait() == 0
    process.communicate()
    assert len(answers(run)) == PICTURES * len(ASKS)
    assert len(entries()) == len(crashes(run))
    check_suspects(Told(run), counted)


def check_suspects(told: Told, counted: dict[str, int]) -> None:
    """See that what was in flight in two deaths came last, and one at a time."""
    assert all(counted.get(path, 0) == n for path, _, n in told.order)
    paths = list(dict.fromkeys(path for path, _, _ in told.order))
    last = list(dict.fromkeys(path for path, _, n in told.order if n > 1))
    assert paths[len(paths) - len(last) :] == last
    # An item's questions are put one after the other: another item's do not come in between.
    asked = [path for path, _, n in told.order if n > 1]
    assert [path for path, _ in groupby(asked)] == last


DIE = """
import os, signal, sys
from pathlib import Path
from llava_ollama.batch.journal import Journal, JournalFeed
from tests.journaling import CONFIG, entries
run = Path(sys.argv[1])
journal = Journal(run, CONFIG, state=run.parent / "state")
journal.add(entries()[:5])
feed = JournalFeed(journal)
for job in feed.take(5):
    if job.item.id in (2, 4):
        feed.sending(job.item.id, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_in_flight_in_two_deaths_goes_last_and_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        died = subprocess.run([sys.executable, "-c", DIE, str(run)], cwd=ROOT, check=False)
        assert died.returncode == -signal.SIGKILL
    with (
        Journal(run, CONFIG, state=run.parent / "state") as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        jobs = feed.take(9)
        assert [(job.item.id, job.crashes) for job in jobs] == [(1, 0), (3, 0), (5, 0)]
        for job in jobs[1:]:
            settle(feed, job)
        journal.flush()
        assert feed.take(9) == []
        settle(feed, jobs[0])
        journal.flush()
        for number in (2, 4):
            (alone,) = feed.take(9)
            assert (alone.item.id, alone.crashes) == (number, 2)
            assert feed.take(9) == []
            feed.give_back(number)
            assert feed.take(9) == [alone]
            settle(feed, alone)
            journal.flush()
        assert feed.take(9) == []
        assert feed.wait() is None


def settle(feed: JournalFeed, job: Job) -> None:
    for question in job.questions:
        feed.settle(Outcome(job.item.id, question.id, "done", "A cat."))
