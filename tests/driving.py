"""A run in a process of its own, on this machine or on a Ray cluster; it says what happens.

    python -m tests.driving '{"executor": "ray", "address": "...", ...}'

Each outcome is a line of JSON on standard output. So a test can follow it, kill it, or press
Ctrl-C, and nothing of Ray's threads and warnings is in the process of the tests.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ollama.batch import cluster, local
from llava_ollama.batch.captioner import Seat
from llava_ollama.batch.events import Event, HostChanged, Settled, Warned
from llava_ollama.batch.journal import Entry
from llava_ollama.batch.local import Batch
from llava_ollama.errors import LlavaOllamaError

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Driver:
    """What a run is started with."""

    folder: str
    """Of the run."""
    paths: Sequence[str]
    executor: str = "local"
    address: str = ""
    seat: Mapping[str, Any] = field(
        default_factory=lambda: {"embedded": "tiny-llava:int4", "threads": 1}
    )
    prompts: Sequence[str] = ("Describe this image",)
    limit: int | None = None
    wait: float = 20.0
    retry_failed: bool = False

    def start(self, environment: Mapping[str, str], cwd: Path = ROOT) -> Driven:
        """Start it."""
        command = [sys.executable, "-W", "error", "-m", "tests.driving"]
        process = subprocess.Popen(
            [*command, json.dumps(dataclasses.asdict(self))],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Driven(process)


@dataclass
class Driven:
    """A run under way."""

    process: subprocess.Popen[str]
    said: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what it says, as it says it, to the end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            yield self.said[-1]

    def after(self, count: int) -> None:
        """Wait until so many questions are settled."""
        for line in self.lines():
            count -= "state" in line
            if count <= 0:
                return
        raise AssertionError(f"it ended before: {self.end()}")

    def end(self) -> str:
        """Wait for its end, and return what it wrote to standard error."""
        for _ in self.lines():
            pass
        said = self.process.communicate()[1]
        assert self.process.stdout is not None
        self.process.stdout.close()
        return said

    @property
    def notes(self) -> list[str]:
        return [line["warned"] for line in self.said if "warned" in line]


def _tell(event: Event) -> None:
    match event:
        case Settled(outcome, path):
            _say(path=path, state=outcome.state, host=outcome.host)
        case Warned(message):
            _say(warned=message)
        case HostChanged(name, state, reason):
            _say(host=name, now=state, reason=reason)
        case _:
            pass


def _say(**words: Any) -> None:
    sys.stdout.write(f"{json.dumps(words)}\n")
    sys.stdout.flush()


def _drive(driver: Driver) -> None:
    seat = Seat(**driver.seat)
    batch = Batch(
        run=Path(driver.folder),
        model="tiny",
        asks=local.asks(driver.prompts),
        state=Path(driver.folder).parent / "state",
        limit=driver.limit,
        wait=driver.wait,
        retry_failed=driver.retry_failed,
    )
    entries = [Entry(path) for path in driver.paths]
    if driver.executor == "ray":
        summary = cluster.describe(batch, driver.address, seat, entries, tell=_tell)
    else:
        summary = local.describe(batch, [seat.site()], entries, tell=_tell)
    _say(seconds=summary.counts.seconds)


if __name__ == "__main__":
    try:
        _drive(Driver(**json.loads(sys.argv[1])))
    except LlavaOllamaError as exc:
        _say(error=exc.message, hint=exc.hint, kind=type(exc).__name__)
        raise SystemExit(exc.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
