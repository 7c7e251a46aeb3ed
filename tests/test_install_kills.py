"""`kill -9` of an install, and of the daemon under it, at random instants; and all at once.

Afterwards there is the old model or the whole new one under the name, and the same command run
again succeeds and leaves nothing but its model. The long versions run in `make soak`.
"""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llava_ollama.errors import LlavaOllamaError
from llava_ollama.transfer import Name
from tests.holding import started
from tests.killing import LONGEST, Forking, Running, Scene, scene

pytestmark = pytest.mark.ollama
SCALES = [pytest.param(1, id="sample"), pytest.param(10, id="long", marks=pytest.mark.soak)]
OTHER = {"int4": "f16", "f16": "int4"}
FREE = 4
"""Every so many kills the name is free, and the daemon without a model."""
ASKED = {"0.24.0": 15, "0.34.4": 5}
"""Every so many kills the model is asked; 0.24.0 takes up to a second to load one."""
MEASURED = 6
AT_WORK = 4
"""All kills but each of so many are after the instant at which a run begins to change something."""
LOG_END = 3000
"""Characters of the daemon's log that a failure shows."""
LIMITS = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Case:
    """Kills of one kind of install."""

    version: str
    way: Name
    kills: int
    downloading: bool = False
    forked: bool = True
    """Whether Python and the libraries are loaded before the run begins."""

    def __str__(self) -> str:
        extra = "-download" * self.downloading + "-cold" * (not self.forked)
        return f"{self.version}-{self.way}{extra}"


OURS = (
    Case("0.24.0", "link", 17),
    Case("0.24.0", "link", 3, forked=False),
    Case("0.24.0", "upload", 14),
    Case("0.24.0", "upload", 4, downloading=True),
    Case("0.24.0", "pull", 5),
    Case("0.34.4", "link", 17),
    Case("0.34.4", "link", 3, forked=False),
    Case("0.34.4", "upload", 17),
    Case("0.34.4", "upload", 4, downloading=True),
    Case("0.34.4", "link", 4, downloading=True),
    Case("0.34.4", "pull", 12),
)
"""A hundred."""
THE_DAEMONS = (
    Case("0.24.0", "link", 4),
    Case("0.24.0", "upload", 4),
    Case("0.24.0", "pull", 2),
    Case("0.34.4", "link", 4),
    Case("0.34.4", "upload", 3),
    Case("0.34.4", "pull", 3),
)
"""Twenty."""


PANIC = "server.(*blobDownload).release"
"""0.34.4 dies itself (download.go:442, a nil CancelFunc) where whoever asked for a pull goes in the
first milliseconds of a download: seen once in some 170 kills. Then it is the daemon that died."""


@dataclass
class Kills:
    """Runs of one kind that are cut off, each followed by a whole one."""

    scene: Scene
    case: Case
    seed: int
    quant: str = "int4"
    """What is to be installed next."""
    hits: Counter[str] = field(default_factory=Counter)
    left: str = ""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._number = 0
        self.seconds = self._measure()

    def _measure(self) -> tuple[float, float]:
        """Return for how long a run only reads, and then is at work; in seconds, medians."""
        measured = []
        for _ in range(MEASURED):
            running = self.scene.start(self.quant, forked=self.case.forked)
            start = time.monotonic()
            assert self._begins(running), running.said
            begins = time.monotonic() - start
            assert running.code == 0, running.said
            measured.append((begins, time.monotonic() - start - begins))
            self.quant = OTHER[self.quant]
        reading, working = zip(*measured[1:], strict=True)
        return statistics.median(reading), statistics.median(working)

    def _begins(self, running: Running) -> bool:
        """Wait until it begins to change something; return False if it ends before."""
        while not self.scene.begun():
            if running.wait(0.002):
                return False
        return True

    def rounds(self, number: int) -> Iterator[tuple[Running, str, str]]:
        """Yield runs that are at a random instant, with what was there before, and a place."""
        for self._number in range(number):
            while True:
                if self._number % FREE == FREE - 1:
                    self.scene.clear()
                before, at_work = self.scene.state(), bool(self._rng.randrange(AT_WORK))
                reading, working = self.seconds
                instant = self._rng.uniform(0, working if at_work else reading + working)
                running = self.scene.start(self.quant, forked=self.case.forked)
                began = at_work and self._begins(running)
                if not running.wait(instant):
                    break
                assert running.code == 0, running.said
                self.quant = OTHER[self.quant]
            where = f"{self.case}, seed {self.seed}, kill {self._number}, {instant:.4f} s"
            yield running, before, where
            self.hits["at work"] += began or self.left != "nothing"

    def note(self) -> None:
        """Remember what the killed run has left."""
        begun = [word for word in self.scene.begun() if not word.endswith(".tmp")]
        self.left = " + ".join(begun) if begun else "nothing"
        self.hits[self.left] += 1

    def check(self, before: str, *, daemon_died: bool = False) -> None:
        """See that the old or the new model is there, and the new one after another run."""
        allowed = {before, self.quant} | ({"broken"} if daemon_died else set())
        assert self._state(daemon_died) in allowed, (before, self.quant)
        asked = self._number % ASKED[self.case.version] == 0
        if asked and self.scene.state() in OTHER:
            self.scene.ask()
        self.scene.age()
        self.scene.run(self.quant, forked=self.case.forked)
        assert self.scene.state() == self.quant
        self.scene.check_bytes()
        self.scene.check_traces("mine", daemon_died=daemon_died)
        if asked:
            self.scene.ask()
        self.quant = OTHER[self.quant]

    def _state(self, daemon_died: bool) -> str:  # noqa: FBT001 - private
        """Return the state once a `copy` that is under way still has had its milliseconds."""
        found = self.scene.state()
        if found == "broken" and not daemon_died:
            time.sleep(0.2)
            found = self.scene.state()
        return found

    def check_hits(self, number: int) -> None:
        """See that most kills hit the work, not only what comes before it."""
        reading, working = self.seconds
        found = dict(self.hits)
        sys.stdout.write(f"{self.case}: {reading:.3f} s + {working:.3f} s, {number}: {found}\n")
        assert self.hits["at work"] >= number / 2, self.hits


@LIMITS
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", OURS, ids=str)
def test_kill_9_at_random_instants(case: Case, scale: int, tmp_path: Path) -> None:
    with (
        started(case.version, tmp_path / "daemon") as running,
        scene(running, tmp_path / "us", case.way, downloading=case.downloading) as here,
    ):
        kills = Kills(here, case, seed=scale)
        for process, before, where in kills.rounds(case.kills * scale):
            assert process.kill() or process.code == 0, process.said
            kills.note()
            try:
                kills.check(before)
            except (AssertionError, LlavaOllamaError) as exc:
                end = running.log()[-LOG_END:]
                if not (running.is_dead() and PANIC in end):
                    raise AssertionError(f"{where}: after {process.said!r}, log {end}") from exc
                running.stop()
                running.start()
                kills.check(before, daemon_died=True)
        kills.check_hits(case.kills * scale)


@LIMITS
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", THE_DAEMONS, ids=str)
def test_kill_9_of_the_daemon_at_random_instants(case: Case, scale: int, tmp_path: Path) -> None:
    with (
        started(case.version, tmp_path / "daemon") as running,
        scene(running, tmp_path / "us", case.way) as here,
    ):
        kills = Kills(here, case, seed=100 + scale)
        for process, before, where in kills.rounds(case.kills * scale):
            running.stop(signal.SIGKILL)
            assert process.code in {0, 1, 3}, process.said
            running.start()
            kills.note()
            try:
                kills.check(before, daemon_died=True)
            except (AssertionError, LlavaOllamaError) as exc:
                end = running.log()[-LOG_END:]
                raise AssertionError(f"{where}: after {process.said!r}, log {end}") from exc
        kills.check_hits(case.kills * scale)


AT_ONCE = (
    Case("0.24.0", "link", 5),
    Case("0.24.0", "upload", 5),
    Case("0.34.4", "link", 6),
    Case("0.34.4", "upload", 5),
    Case("0.34.4", "pull", 4),
)
"""Rounds, not kills."""
NAMES = {"mine": ("int4", "f16"), "one": ("int4",), "two": ("f16",)}
"""What is installed at once: two under one name, and two that share a blob with all others."""
BESIDE = "beside"


@dataclass
class AtOnce:
    """Rounds of four installs and one `ollama rm`."""

    scene: Scene
    forking: list[Forking]
    rng: random.Random

    def round(self, number: int) -> None:
        """Run all of them, and see how each ends."""
        if number % FREE == 0:
            self.scene.clear()  # so that each asks the empty daemon which store is its own
        else:
            self.scene.run("int4", BESIDE)
        removed = self.rng.choice([*NAMES, BESIDE])
        jobs = [(quant, name) for name, quants in NAMES.items() for quant in quants]
        order = [*jobs, ("", removed)]
        self.rng.shuffle(order)
        remover, running = None, list[tuple[str, str, Running]]()
        for quant, name in order:
            time.sleep(self.rng.uniform(0, 0.1))
            if quant:
                by = self.forking[len(running)]
                running.append((quant, name, self.scene.start(quant, name, by=by)))
            else:
                remover = self._remove(name)
        assert remover is not None
        code = remover.wait(LONGEST)
        self._check_ended(running, removed)
        assert code == 0 or removed != BESIDE or number % FREE == 0

    def _remove(self, name: str) -> subprocess.Popen[bytes]:
        running = self.scene.running
        quiet = subprocess.DEVNULL
        command, env = [str(running.binary), "rm", name], running.environment
        return subprocess.Popen(command, env=env, stdin=quiet, stdout=quiet, stderr=quiet)

    def _check_ended(self, running: list[tuple[str, str, Running]], removed: str) -> None:
        """See that each succeeded, or says in a sentence why its name was taken from it."""
        for _, name, process in running:
            assert process.code == 0 or name == removed, (name, removed, process.said)
            assert process.code in {0, 1}, process.said
            assert "Traceback" not in process.said
        for name, quants in NAMES.items():
            allowed = {*quants, "absent"} if name == removed else {*quants}
            assert self.scene.state(name) in allowed, name

    def again(self) -> None:
        """Run each command again, alone: all names are whole."""
        for name, quants in NAMES.items():
            self.scene.run(quants[0], name)
            assert self.scene.state(name) == quants[0]
        self.scene.check_bytes()
        there = self.scene.state(BESIDE) == "int4"
        self.scene.check_traces(*NAMES, *([BESIDE] if there else []))


@LIMITS
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", AT_ONCE, ids=str)
def test_four_installs_and_ollama_rm_at_once(case: Case, scale: int, tmp_path: Path) -> None:
    with (
        started(case.version, tmp_path / "daemon") as running,
        scene(running, tmp_path / "us", case.way) as here,
        ExitStack() as stack,
    ):
        forking = [stack.enter_context(Forking(here.environment)) for _ in range(4)]
        all_of_them = AtOnce(here, forking, random.Random(200 + scale))
        for number in range(case.kills * scale):
            try:
                all_of_them.round(number)
                all_of_them.again()
            except AssertionError as exc:
                raise AssertionError(f"{case}, seed {200 + scale}, round {number}") from exc
        here.ask()
