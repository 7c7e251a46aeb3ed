"""The batch against what others run such jobs with: Ray Data's HTTP processor, datatrove's cache.

    make rivals && python -m tests.bench.bench_rivals [SHARE]   # a share of pictures and rounds

A job's time begins with its first picture and ends with its last answer; the start of an
interpreter and of Ray itself is counted for neither. With faults, what is counted is what became
of the answers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from llava_ollama.batch.journal import Config, Entry, Journal, JournalFeed
from llava_ollama.batch.pace import Pace
from llava_ollama.batch.work import Job, Outcome, Seen
from tests.batches import DESCRIBE, drawn
from tests.bench import Figure, rivals, seconds
from tests.bench.timed import VERSION, Watched, alone, timed, tiny
from tests.served import NAME, served

ROUNDS = 5
PICTURES = 600
ROWS = 10_000
HALF, TENTH = 0.5, 0.1
RAY = "Ray Data's HTTP processor"
PATIENCE = 5.0
"""Seconds that a stalled answer is waited for."""
ANSWER = "A red circle on a white background, and beside it two blue squares."


def measure(share: float = 1.0) -> list[Figure]:
    rounds, rows = max(1, round(ROUNDS * share)), max(500, round(ROWS * share))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = list(drawn(folder / "pictures", max(100, round(PICTURES * share))))
        return [speed(folder, paths, rounds), *faults(paths), journal(folder, rows, rounds)]


def speed(folder: Path, paths: Sequence[Path], rounds: int) -> Figure:
    """One real daemon, the two in turn."""
    ratios = []
    with tiny(folder) as (url, model):
        for _ in range(rounds):
            ours = alone(url, model, Pace(), paths)
            theirs = rivals.run("ray_http", url, model, str(paths[0].parent))
            assert theirs["rows"] == len(paths), theirs
            ratios.append(ours / theirs["seconds"])
            sys.stderr.write(f"ours {ours:.1f} s, theirs {theirs}\n")
    what = f"batch of {len(paths)} pictures on {VERSION}: time"
    return Figure(what, RAY, statistics.median(ratios), HALF, rounds)


def faults(paths: Sequence[Path]) -> list[Figure]:
    """Each hundredth answer is none: what is stored, and whether the job comes to its end."""
    figures = []
    for fault in ("500", "503"):
        with served({1: 400, 4: 1600}, 4, faults=[fault]) as server:
            theirs = rivals.run("ray_http", server.url, NAME, str(paths[0].parent))
        missing = len(paths) - theirs["rows"] + theirs["errors"]
        what = f"one answer of 100 is a {fault}: pictures without an answer"
        figures.append(Figure(f"{RAY}: {what}", "-", missing, None, 1, "pictures"))
    with served({1: 400, 4: 1600}, 4, faults=["500", "503", "stall"]) as server:
        done = timed([(server.url, NAME, Pace())], Watched(paths), timeout=PATIENCE)
    good = [o for o in done.outcomes if o.state == "done" and o.text.startswith("A picture")]
    what = "one answer of 100 is a 500, a 503 or a stall: pictures without an answer"
    return [*figures, Figure(what, "-", len(paths) - len(good), 0, 1, "pictures")]


def journal(folder: Path, rows: int, rounds: int) -> Figure:
    """Seconds for as many answers on the disk; each of ours is also leased and looked up."""
    ratios = []
    for number in range(rounds):
        ours = seconds_of_ours(folder / f"run{number}", rows)
        theirs = rivals.run("datatrove_cache", str(rows))["seconds"]
        sys.stderr.write(f"{rows} rows: ours {ours:.2f} s, theirs {theirs:.2f} s\n")
        ratios.append(ours / theirs)
    what = "the journal: time for an answer on the disk"
    return Figure(what, "datatrove's request cache", statistics.median(ratios), TENTH, rounds)


def seconds_of_ours(run: Path, rows: int) -> float:
    entries = [Entry(f"/pictures/{n:07}.jpg", size=1, mtime_ns=1) for n in range(rows)]
    config = Config("tiny", "a" * 64, (DESCRIBE,))
    with (
        Journal(run, config, state=run.parent / "state", mounts="") as book,
        closing(JournalFeed(book)) as feed,
    ):
        book.add(entries)

        def settle_all() -> None:
            while jobs := feed.take(64):
                for job in jobs:
                    settle(feed, job)
            book.flush()

        return seconds(settle_all)


def settle(feed: JournalFeed, job: Job) -> None:
    (question,) = job.questions
    number = job.item.id
    feed.seen(Seen(number, f"{number:064x}", 1, 1, 640, 480))
    feed.sending(number, question.id)
    feed.settle(Outcome(number, question.id, "done", ANSWER, "stop", 9, 0.1, "here", 1))


if __name__ == "__main__":
    scale = float(sys.argv[1]) if sys.argv[1:] else 1.0
    sys.stdout.write("\n".join(figure.row() for figure in measure(scale)) + "\n")
