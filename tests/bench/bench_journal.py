"""Going on with a run of a million pictures of which 900,000 are done, and answers per second.

    python -m tests.bench.bench_journal [PICTURES]

The process that goes on gets its first pictures while its source, all of it known already, is
read again beside it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from llava_ollama.batch.journal import Config, Entry, Journal, JournalFeed
from llava_ollama.batch.journal.database import FILE, connect
from llava_ollama.batch.work import Ask, Outcome
from tests.bench import Figure
from tests.memory import peak

CONFIG = Config("tiny", "a" * 64, (Ask("Describe this image", options={"temperature": 0}),))
PICTURES = 1_000_000
DONE = 0.9
TAKEN = 16
ROUNDS = 3
ANSWER = "A photograph of a street with cars, trees and some people who walk by. " * 3
_FILL = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :pictures)
INSERT INTO item(id, path, custom_id, offset, own, size, mtime_ns, sha256, width, height)
SELECT i, CAST(printf('/pictures/holiday/photograph-%07d.jpg', i) AS BLOB), x'', -1, 0, 1, 1,
       iif(i <= :done, randomblob(32), NULL), 640, 480 FROM n;
"""
_ANSWER = """
INSERT INTO answer(item, ask, state, attempts, text, finish, tokens, seconds, host)
SELECT id, 1, iif(id <= :done, 2, 0), id <= :done, iif(id <= :done, :text, ''),
       iif(id <= :done, 'stop', ''), 40, 0.5, 1 FROM item ORDER BY id;
"""


def fill(run: Path, pictures: int, done: int) -> None:
    """Make a run of so many pictures, of which the first `done` are."""
    with Journal(run, CONFIG, state=run.parent / "state"):
        pass
    with closing(connect(run / FILE, writable=True)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        db.execute("INSERT INTO host(id, url) VALUES (1, 'http://127.0.0.1:11434')")
        db.execute(_FILL, {"pictures": pictures, "done": done})
        db.execute(_ANSWER, {"done": done, "text": ANSWER})
        db.execute("COMMIT")


def go_on(run: Path, pictures: int) -> dict[str, float]:
    """Go on with a run: return the seconds until the first pictures, and bytes of memory."""
    entries = (
        Entry(f"/pictures/holiday/photograph-{n:07}.jpg", size=1, mtime_ns=1)
        for n in range(1, pictures + 1)
    )
    begun = time.perf_counter()
    with (
        Journal(run, CONFIG, state=run.parent / "state") as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        feed.fill(entries)
        jobs = feed.take(TAKEN)
        seconds = time.perf_counter() - begun
        assert len(jobs) == min(TAKEN, pictures)
        for job in jobs:
            feed.give_back(job.item.id)
        while feed.reading:
            time.sleep(0.01)
        read = time.perf_counter() - begun
    return {"seconds": seconds, "read": read, "peak": peak()}


def settle_all(run: Path, answers: int) -> float:
    """Return how many answers a second the disk takes, beginning with their pictures' names."""
    entries = [Entry(f"/pictures/photograph-{n:07}.jpg") for n in range(answers)]
    with (
        Journal(run, CONFIG, state=run.parent / "state") as journal,
        closing(JournalFeed(journal)) as feed,
    ):
        journal.add(entries)
        jobs = feed.take(answers)
        begun = time.perf_counter()
        for job in jobs:
            feed.sending(job.item.id, 1)
            feed.settle(Outcome(job.item.id, 1, "done", ANSWER, "stop", 40, 0.5, "h"))
        journal.flush()
        return answers / (time.perf_counter() - begun)


def measure(pictures: int = PICTURES) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {number: folder / f"run {number}" for number in (1, pictures // 100, pictures)}
        for number, run in runs.items():
            fill(run, number, int(number * DONE))
        found = {
            number: [_child(run, number) for _ in range(ROUNDS)] for number, run in runs.items()
        }
        rate = statistics.median(settle_all(folder / f"own {n}", 20_000) for n in range(ROUNDS))

    def middle(number: int, key: str) -> float:
        return statistics.median(one[key] for one in found[number])

    empty, small, large = (middle(number, "peak") for number in runs)
    what = f"going on with {pictures:,} pictures, {DONE:.0%} done"
    return [
        Figure(
            f"{what}: until the first picture",
            "-",
            1000 * middle(pictures, "seconds"),
            300.0,
            ROUNDS,
            "ms",
        ),
        Figure(
            f"{what}: memory beyond an empty run", "-", (large - empty) / 1e6, 64.0, ROUNDS, "MB"
        ),
        Figure(f"{what}: memory", f"{pictures // 100:,} pictures", large / small, 1.2, ROUNDS),
        Figure("answers that the journal takes in a second", "-", rate, None, ROUNDS, "rows"),
    ]


def _child(run: Path, pictures: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_journal", str(run), str(pictures)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.stdout.write(json.dumps(go_on(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        given = [int(text) for text in sys.argv[1:]]
        sys.stdout.writelines(figure.row() + "\n" for figure in measure(*given))
