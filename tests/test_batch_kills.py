"""`kill -9` of a batch at random instants, on real daemons, until every picture is answered.

After each kill the journal has every answer that it had; the next run asks nothing that is
answered there; and in the end each picture has one row, with what was drawn on it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llava_ollama import catalog, export, images
from llava_ollama.batch.journal import Reading
from llava_ollama.batch.work import Row
from llava_ollama.daemon import Daemon
from llava_ollama.install import from_catalog
from llava_ollama.records import Records
from llava_ollama.tiny import shapes
from llava_ollama.weights import Weights
from tests.batches import drawn
from tests.daemons.running import RunningDaemon
from tests.holding import started
from tests.installing import uploading
from tests.killing import Forking, Running
from tests.proxy import Proxy

pytestmark = pytest.mark.ollama
SIDE = 112
PROMPTS = ("Describe this image", "What colour is it?")
PICTURES = {"0.24.0": 4, "0.34.4": 120}
LONGEST = {"0.24.0": 1.5, "0.34.4": 0.4}
"""Seconds until a kill, at most, for most of them from the first question on; 0.24.0 takes up to a
second for a picture."""
AT_WORK = 0.85
"""Of all kills; the others hit what comes before the first picture, too."""
EQUAL = 12
"""One of so many pictures is there twice."""
_CATALOG = """
[models.tiny-llava]
template = "llama3-instruct"
parameters.num_thread = 1
projector = {{ file = "{projector}" }}
quants.int4 = {{ file = "{model}" }}
"""


@dataclass
class Batches:
    """Runs over fresh pictures, through a proxy that sees what is asked."""

    running: RunningDaemon
    folder: Path
    rng: random.Random
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pictures and prompts that were sent to the daemon since the last `kill`."""
    hits: int = 0
    number: int = 0

    def watch(self, request: str, body: bytes) -> None:
        if request == "POST /api/chat":
            message = json.loads(body)["messages"][-1]
            picture = hashlib.sha256(base64.b64decode(message["images"][0])).hexdigest()
            prompt = message["content"].removeprefix("[img]\n")
            self.asked[picture, prompt] += 1

    def begin(self, url: str) -> None:
        """Draw pictures for a new run."""
        self.number += 1
        self.url = url
        self.place = self.folder / f"{self.number}"
        self.place.mkdir(parents=True)
        self.shapes = drawn(self.place / "pictures", PICTURES[self.running.version], self.number)
        for path in list(self.shapes)[::EQUAL]:
            twin = path.with_name(f"twin-{path.name}")
            shutil.copy(path, twin)
            self.shapes[twin] = self.shapes[path]
        (self.place / "pictures" / "broken.png").write_bytes(b"\x89PNG, or is it")
        self.sent = {
            hashlib.sha256(images.prepare(path, SIDE).data).hexdigest(): path
            for path in self.shapes
        }

    @property
    def run(self) -> Path:
        return self.place / "run"

    def start(self, forking: Forking) -> Running:
        prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
        command = ["batch", str(self.place / "pictures"), *prompts, "-o", str(self.run)]
        out = self.place / f"said-{self.rng.getrandbits(32):08x}.txt"
        return forking.start([*command, "--model", "mine", "--host", self.url], out)

    def rows(self) -> dict[tuple[str, str], Row]:
        """Return what the journal has, each picture and prompt once."""
        if not (self.run / "journal.sqlite3").exists():
            return {}
        with Reading(self.run) as reading:
            rows = list(reading.rows())
        found = {(row.path, row.prompt): row for row in rows}
        assert len(found) == len(rows)
        return found

    def kill(self, running: Running, where: str) -> None:
        """Kill it, and see that nothing is lost that was there, and nothing was asked again."""
        before = self.done
        wait_for_the_first = self.rng.random() < AT_WORK
        while wait_for_the_first and not self._asked_one() and not running.wait(0.005):
            pass
        running.wait(self.rng.uniform(0, LONGEST[self.running.version]))
        killed = running.kill()
        assert killed or running.code == 4, running.said
        after = {key: row for key, row in self.rows().items() if row.state == "done"}
        for key, row in before.items():
            assert after[key] == row, where
        for picture, prompt in self.asked:
            if picture in self.sent:
                assert (str(self.sent[picture]), prompt) not in before, where
        self.hits += killed and (len(after) > len(before) or self._asked_one())
        self.asked.clear()
        self.done = after

    def _asked_one(self) -> bool:
        return any(picture in self.sent for picture, _ in list(self.asked))

    def check_end(self) -> None:
        """See that every picture has its rows, and the answers are about what was drawn."""
        rows = self.rows()
        right = 0
        for path, shape in self.shapes.items():
            said = [rows[str(path), prompt] for prompt in PROMPTS]
            assert {row.state for row in said} == {"done"}
            right += shapes.names(shape, said[0].text) and shape.colour in said[1].text.lower()
        assert right >= 0.97 * len(self.shapes), right
        wrong = [row for row in rows.values() if row.state == "failed"]
        assert [(Path(row.path).name, row.error_kind) for row in wrong] == [
            ("broken.png", "picture")
        ] * len(PROMPTS)
        assert len(rows) == len(PROMPTS) * (len(self.shapes) + 1)
        self._check_export(rows)

    def _check_export(self, rows: dict[tuple[str, str], Row]) -> None:
        with Reading(self.run) as reading:
            export.export(reading.rows, ["jsonl"], export.Options(self.run))
        text = (self.run / "answers.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        assert {(line["path"], line["prompt"]) for line in lines} == rows.keys()
        assert len(lines) == len(rows)

    done: dict[tuple[str, str], Row] = field(default_factory=dict)


def install(running: RunningDaemon, folder: Path) -> None:
    """Install the tiny model under the name `mine`."""
    from llava_ollama.resources import bundled

    names = {"model": "tiny-llava-int4.gguf", "projector": "tiny-llava-mmproj-f16.gguf"}
    folder.mkdir()
    files = {kind: shutil.copy(bundled(name), folder) for kind, name in names.items()}
    (folder / "catalog.toml").write_text(
        _CATALOG.format(**{kind: Path(path).name for kind, path in files.items()})
    )
    daemon = Daemon(running.host)
    installer = uploading(daemon, Weights(downloads=folder), Records(folder / "state"))
    known = catalog.load(folder / "catalog.toml")
    installer.apply(installer.plan(from_catalog(known, "tiny-llava", "int4", to="mine")))
    daemon.close()


@pytest.fixture
def batches(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Batches, Forking]]:
    version: str = request.param
    with ExitStack() as stack:
        running = stack.enter_context(started(version, tmp_path / "daemon"))
        install(running, tmp_path / "files")
        made = Batches(running, tmp_path / "batches", random.Random(1))
        proxy = stack.enter_context(Proxy(running.host, watch=made.watch))
        made.begin(proxy.url)
        environment = {
            **running.environment,
            "HOME": str(tmp_path / "home"),
            "LLAVA_OLLAMA_STATE": str(tmp_path / "state"),
        }
        yield made, stack.enter_context(Forking(environment))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scale", [1, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("batches", "kills"), [("0.34.4", 95), ("0.24.0", 5)], indirect=["batches"]
)
def test_kill_9_at_random_instants(batches: tuple[Batches, Forking], kills: int, scale: int):
    made, forking = batches
    for number in range(kills * scale):
        if (made.run / "journal.sqlite3").exists() and len(made.done) == 2 * len(made.shapes):
            made.check_end()
            made.done.clear()
            made.begin(made.url)
        made.kill(made.start(forking), f"run {made.number}, kill {number}")
    last = made.start(forking)
    assert last.code == 4, last.said  # the broken picture
    made.check_end()
    assert made.hits >= 0.5 * kills * scale, made.hits
