"""The pace that finds itself, against the best fixed number of questions at once.

    python -m tests.bench.bench_pace [SHARE]     # a share of the pictures and of the rounds

On the real 0.34.4 with the tiny model the best fixed number is found by a sweep in the same round;
on a server with a set service time it is known. Ratios are of seconds: 1 / 0.97 is a bar of 0.97
of the best throughput.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llava_ollama.batch.pace import Fixed, Pace
from tests.batches import DESCRIBE, drawn
from tests.bench import Figure, seconds
from tests.bench.timed import VERSION, Watched, alone, timed, tiny
from tests.served import NAME, served

ROUNDS = 5
PICTURES = 2000
LEVELS = (1, 2, 3, 4, 6, 8)
REAL, SET, SUM, LOOP = 1 / 0.97, 1 / 0.9, 1 / 0.95, 1 / 1.1
SLOWER = {1: 300.0, 2: 225.0, 4: 120.0, 8: 45.0, 16: 21.0}
"""Tokens per second of a processor that is fought over; an answer has ten."""
EACH = 40.0
"""Tokens per second of a slot."""
BEST = "the best fixed concurrency"


def measure(share: float = 1.0) -> list[Figure]:
    rounds, count = max(1, round(ROUNDS * share)), max(100, round(PICTURES * share))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = list(drawn(folder / "pictures", count))
        figures = real(folder, paths, rounds)
        rounds = max(1, rounds // 2)
        return [*figures, *law(paths, rounds), *two(paths, rounds)]


def real(folder: Path, paths: Sequence[Path], rounds: int) -> list[Figure]:
    """Sweep, loop and pace on one daemon, in turn."""
    fixed: dict[int, list[float]] = {level: [] for level in LEVELS}
    paced, again, looped = [], [], []
    with tiny(folder) as (url, model):
        alone(url, model, Fixed(4), paths[:100])
        for _ in range(rounds):
            for level, took in fixed.items():
                took.append(alone(url, model, Fixed(level), paths))
            pace = Pace()
            paced.append(alone(url, model, pace, paths))
            again.append(alone(url, model, Pace(pace.settled), paths))
            looped.append(seconds(lambda: loop(url, model, paths)))
    medians = {level: statistics.median(took) for level, took in fixed.items()}
    sys.stderr.write(f"seconds at fixed levels: {medians}; paced {paced}; looped {looped}\n")
    best, mine = min(medians.values()), statistics.median(paced)
    kept = statistics.median(again)
    what = f"batch of {len(paths)} pictures on {VERSION}"
    return [
        Figure(f"{what}: time", BEST, mine / best, REAL, rounds),
        Figure(f"{what}, level remembered: time", BEST, kept / best, REAL, rounds),
        Figure(
            f"{what}: time",
            "a loop of ollama-python",
            mine / statistics.median(looped),
            LOOP,
            rounds,
        ),
    ]


def loop(url: str, model: str, paths: Sequence[Path]) -> None:
    """Ask one after the other, as the daemon's own client is used."""
    import ollama

    options = {"temperature": 0, **DESCRIBE.options}
    client = ollama.Client(url)
    for path in paths:
        message = {"role": "user", "content": DESCRIBE.prompt, "images": [str(path)]}
        client.chat(model, [message], options=options)
    client.close()


def law(paths: Sequence[Path], rounds: int) -> list[Figure]:
    """Two servers with a set service time: one at its best with one question, one with 16."""
    few = paths[: max(100, len(paths) // 3)]
    slower, slots = [], []
    for _ in range(rounds):
        with served(SLOWER) as server:
            best = alone(server.url, NAME, Fixed(1), few)
            slower.append(alone(server.url, NAME, Pace(), few) / best)
        with served({1: EACH, 16: 16 * EACH}, 16) as server:
            best = alone(server.url, NAME, Fixed(16), paths)
            slots.append(alone(server.url, NAME, Pace(), paths) / best)
    return [
        Figure(
            "batch where four at once are slower: time",
            BEST,
            statistics.median(slower),
            SET,
            rounds,
        ),
        Figure("batch on 16 slots: time", BEST, statistics.median(slots), SET, rounds),
    ]


def two(paths: Sequence[Path], rounds: int) -> list[Figure]:
    """Two hosts of speed 1 : 4 against the sum of both, and one of them killed half-way."""
    times, lost = [], []
    for _ in range(rounds):
        with (
            served({1: EACH / 2, 4: 2 * EACH}, 4) as slow,
            served({1: 2 * EACH, 4: 8 * EACH}, 4) as fast,
        ):
            part = len(paths) // 5
            rates = part / alone(slow.url, NAME, Fixed(4), paths[:part])
            rates += 4 * part / alone(fast.url, NAME, Fixed(4), paths[part:])
            hosts = [(slow.url, NAME, Pace()), (fast.url, NAME, Pace())]
            done = timed(hosts, Watched(paths))
            times.append(done.seconds * rates / len(paths))
            feed = Watched(paths[:part], part // 2, fast.kill)
            done = timed([(slow.url, NAME, Fixed(4)), (fast.url, NAME, Fixed(4))], feed)
            lost.append(feed.sent - part)
            assert {outcome.state for outcome in done.outcomes} == {"done"}
    return [
        Figure(
            "batch on two hosts of speed 1 : 4: time",
            "the sum of both",
            statistics.median(times),
            SUM,
            rounds,
        ),
        Figure(
            "a host killed that was asked 4 at once: asked again",
            "-",
            max(lost),
            4,
            rounds,
            "pictures",
        ),
    ]


if __name__ == "__main__":
    scale = float(sys.argv[1]) if sys.argv[1:] else 1.0
    sys.stdout.write("\n".join(figure.row() for figure in measure(scale)) + "\n")
