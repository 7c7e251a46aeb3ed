"""A run through `--ray` on a cluster that is started already, against the same run without.

    python -m tests.bench.bench_cluster [PICTURES]

Both nodes ask the one daemon that the run without Ray asks: what is measured is the way there and
back. The time is that of the run, from the first look at its pictures to the last answer; the
start of the driver and of the actors is not in it, the canary and the climb of the pace are.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.batches import drawn
from tests.bench import Figure
from tests.bench.timed import VERSION, tiny
from tests.clusters import RayCluster
from tests.driving import Driver

ROUNDS = 3
PICTURES = 600


def measure(count: int = PICTURES) -> list[Figure]:
    """Return the ratio of the two times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(path) for path in drawn(folder / "pictures", count)]
        with (
            tiny(folder) as (url, model),
            RayCluster(folder / "cluster", more={"OLLAMA_HOST": url}) as cluster,
        ):
            here = {"PATH": os.environ["PATH"], "HOME": name, "OLLAMA_HOST": url}
            ratios = []
            for number in range(ROUNDS):
                driver = Driver(str(folder / f"{number}" / "run"), paths, seat={"model": model})
                ours = _seconds(driver, here)
                spread = Driver(
                    str(folder / f"{number}-ray" / "run"),
                    paths,
                    "ray",
                    cluster.address,
                    seat={"model": model},
                )
                through = _seconds(spread, cluster.environment)
                ratios.append(through / ours)
                sys.stderr.write(f"here {ours:.1f} s, through Ray {through:.1f} s\n")
    what = f"{count} pictures on {VERSION} through `--ray`, cluster started: time"
    return [Figure(what, "without Ray", statistics.median(ratios), None, ROUNDS)]


def _seconds(driver: Driver, environment: Mapping[str, str]) -> float:
    driven = driver.start(environment)
    said = driven.end()
    assert driven.process.returncode == 0, said
    assert sum(line.get("state") == "done" for line in driven.said) == len(driver.paths)
    return float(driven.said[-1]["seconds"])


if __name__ == "__main__":
    for figure in measure(*map(int, sys.argv[1:])):
        sys.stdout.write(f"{figure.row()}\n")
