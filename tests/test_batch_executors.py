"""Runs here and on a Ray cluster pass the same suite; and what only a cluster can meet.

The driver is a process of its own (`tests/driving.py`), the cluster two real nodes on the loopback
address (`tests/clusters.py`), and who answers on each is the tiny model in the actor's process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llava_ollama.batch.journal import Reading
from llava_ollama.batch.work import Row
from llava_ollama.tiny import shapes
from tests.batches import drawn
from tests.clusters import ROOT, RayCluster
from tests.conftest import start
from tests.driving import Driven, Driver
from tests.installing import MODEL, PROJECTOR, install

pytestmark = pytest.mark.embedded
COUNT, SEED = 40, 4
"""Pictures that the tiny model describes right, all of them."""
_CATALOG = """
[models.only-there]
parameters.num_thread = 1
projector = {{ file = "{projector}" }}
quants.int4 = {{ file = "{model}" }}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two nodes; `two` has a model more."""
    folder = tmp_path_factory.mktemp("cluster")
    catalog = folder / "catalog.toml"
    catalog.write_text(_CATALOG.format(projector=PROJECTOR, model=MODEL))
    with RayCluster(folder, own={"LLAVA_OLLAMA_CATALOG": str(catalog)}) as cluster:
        yield cluster


@dataclass(frozen=True)
class Scene:
    """Pictures, what is on them, and how a run over them is started."""

    driver: Driver
    environment: Mapping[str, str]
    shapes: Mapping[Path, shapes.Shape]

    def start(self, **changes: Any) -> Driven:
        return replace(self.driver, **changes).start(self.environment)

    def rows(self) -> list[Row]:
        with Reading(Path(self.driver.folder)) as reading:
            return list(reading.rows())

    def done(self) -> set[str]:
        return {row.path for row in self.rows() if row.state == "done"}

    def check(self, wrong: int = 0) -> None:
        """See that there is a row for each picture, and that it tells what is on that.

        `wrong` is how many the tiny model may describe wrong.
        """
        rows = [row for row in self.rows() if row.prompt == "Describe this image"]
        assert sorted(row.path for row in rows) == sorted(self.driver.paths)
        rows = [row for row in rows if Path(row.path) in self.shapes]
        assert {row.state for row in rows} == {"done"}
        missed = [r for r in rows if not shapes.names(self.shapes[Path(r.path)], r.text)]
        assert len(missed) <= wrong, missed


def _scene(
    executor: str, folder: Path, cluster: RayCluster | None = None, count: int = COUNT
) -> Scene:
    found = drawn(folder / "pictures", count, SEED)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
    driver = Driver(str(folder / "run"), [str(path) for path in found], executor)
    if cluster is not None:
        environment, driver = cluster.environment, replace(driver, address=cluster.address)
    return Scene(driver, {**environment, "PYTHONPATH": str(ROOT)}, found)


@pytest.fixture(params=["local", "ray"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """The suite's: of each executor."""
    if request.param == "local":
        return _scene("local", tmp_path)
    return _scene("ray", tmp_path, request.getfixturevalue("cluster"))


@pytest.fixture
def spread(tmp_path: Path, cluster: RayCluster) -> Scene:
    """A run on the cluster."""
    return _scene("ray", tmp_path, cluster)


# The suite


def test_each_answer_is_under_its_own_picture_and_what_fails_says_why(scene: Scene):
    pictures = [Path(path) for path in scene.driver.paths]
    broken, gone, twin = (pictures[0].with_name(f"{name}.png") for name in "bgt")
    broken.write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    shutil.copy(pictures[7], twin)
    paths = [*scene.driver.paths, str(broken), str(gone), str(twin)]
    prompts = ("Describe this image", "What colour is it?")
    driver = replace(scene.driver, paths=paths, prompts=prompts)
    driven = driver.start(scene.environment)
    assert driven.end() == ""
    assert driven.process.returncode == 0
    replace(scene, driver=driver, shapes={**scene.shapes, twin: scene.shapes[pictures[7]]}).check()
    rows = scene.rows()
    assert len(rows) == 2 * len(paths)
    assert {row.model_digest for row in rows} == {rows[0].model_digest}
    for row in rows:
        if row.prompt == prompts[1] and (shape := scene.shapes.get(Path(row.path))):
            assert shape.colour in row.text.lower()
    assert {(r.state, r.error_kind) for r in rows if r.path == str(broken)} == {
        ("failed", "picture")
    }
    assert {(r.state, r.error_kind) for r in rows if r.path == str(gone)} == {("gone", "picture")}


def test_a_limit_is_kept_and_the_rest_is_asked_the_next_time(scene: Scene):
    scene.start(limit=6).end()
    first = scene.done()
    assert len(first) == 6
    second = scene.start()
    second.end()
    scene.check()
    assert not first & {line["path"] for line in second.said if "state" in line}


def test_a_killed_driver_goes_on_and_nothing_is_asked_twice(scene: Scene):
    driven = scene.start()
    driven.after(1)
    while not scene.done():  # what it says is on the disk a tenth of a second later
        time.sleep(0.01)
    driven.process.kill()
    driven.end()
    first = scene.done()
    assert 0 < len(first) < COUNT
    second = scene.start()
    assert second.end() == ""
    assert not first & {line["path"] for line in second.said if "state" in line}
    scene.check()


def test_ctrl_c_ends_a_run_and_gives_back_what_was_not_asked(scene: Scene):
    driven = scene.start()
    driven.after(5)
    driven.process.send_signal(signal.SIGINT)
    assert driven.end() == ""
    assert driven.process.returncode == 130
    states = {row.state for row in scene.rows()}
    assert states == {"done", "pending"}


# What only a cluster can meet


def test_what_a_lost_node_had_is_asked_by_the_others(tmp_path: Path, cluster: RayCluster):
    scene = _scene("ray", tmp_path, cluster, count=120)
    driven = scene.start()
    hosts: set[str] = set()
    for line in driven.lines():
        hosts |= {line["host"]} if "state" in line else set()
        if len(hosts) == 2:
            break
    cluster.lose()
    try:
        assert driven.end() == ""
    finally:
        cluster.join()
    assert driven.process.returncode == 0
    assert hosts == {"embedded on one", "embedded on two"}
    assert "`two` is left out for now: the node `two` is lost" in driven.notes
    scene.check(wrong=4)


def test_a_process_that_dies_is_replaced_and_its_pictures_are_asked_alone(spread: Scene):
    driven = spread.start()
    driven.after(5)
    for pid in _actors(spread.environment["HOME"]):
        os.kill(pid, signal.SIGKILL)
    assert driven.end() == ""
    assert driven.process.returncode == 0
    assert any(note.endswith("` is gone: it was killed") for note in driven.notes)
    spread.check()


def test_a_node_without_the_model_is_told_of_and_the_others_answer(spread: Scene):
    driven = spread.start(seat={"embedded": "only-there"})
    assert driven.end() == ""
    assert driven.process.returncode == 0
    assert {row.host for row in spread.rows()} == {"embedded on two"}
    assert "`one` is left out for now: no model `only-there` in the catalog" in driven.notes
    spread.check()


def test_without_any_node_that_has_the_model_nothing_is_begun(spread: Scene):
    driven = spread.start(seat={"embedded": "nowhere"})
    assert driven.end() == ""
    assert driven.process.returncode == 2
    assert driven.said[-1] == {
        "error": "no node of the cluster can answer; `one` says: no model `nowhere` in the catalog",
        "hint": "Known models are `llava-llama3`, `tiny-llava`",
        "kind": "UnknownModel",
    }
    assert not Path(spread.driver.folder).exists()


def test_nodes_that_do_not_find_the_pictures_are_left_out(spread: Scene):
    folder = Path(spread.driver.paths[0]).parent
    # Another folder for each process: there for the driver, and not for the nodes.
    paths = [f"/proc/self/cwd/{Path(path).name}" for path in spread.driver.paths]
    driver = replace(spread.driver, paths=paths)
    driven = driver.start(spread.environment, cwd=folder)
    assert driven.end() == ""
    assert driven.process.returncode == 2
    assert (
        "`one` is left out for now: `one` does not find the pictures that are here" in driven.notes
    )
    assert {row.state for row in spread.rows()} == {"pending"}


@pytest.mark.ollama
def test_each_node_asks_a_daemon_of_its_own(tmp_path: Path):
    daemons = [start("0.34.4", tmp_path / name) for name in ("first", "second")]
    try:
        ports = [
            {"OLLAMA_HOST": daemon.host}
            for daemon in daemons
            if install(daemon.host, tmp_path, "tiny")
        ]
        with RayCluster(tmp_path / "cluster", more=ports[0], own=ports[1]) as cluster:
            scene = _scene("ray", tmp_path, cluster)
            driven = scene.start(seat={"model": "tiny"})
            assert driven.end() == ""
            scene.check()
            asked = {
                daemon.host.replace("127.0.0.1", name)
                for daemon, name in zip(daemons, ("one", "two"), strict=True)
            }
            assert {row.host for row in scene.rows()} == asked
    finally:
        for daemon in daemons:
            daemon.stop()


# Ray Data


_PIPELINE = """
import json, logging, sys
import ray
from llava_ollama.batch.captioner import Captioner

ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
ray.data.DataContext.get_current().enable_progress_bars = False
paths = json.loads(sys.argv[2])
sources = {
    "path": ray.data.from_items([{"path": path} for path in paths], override_num_blocks=4),
    "bytes": ray.data.read_binary_files(paths, include_paths=True).rename_columns({"path": "from"}),
}
for source in sources.values():
    answers = source.map_batches(
        Captioner,
        fn_constructor_kwargs={"embedded": "tiny-llava", "threads": 1},
        batch_size=8,
        concurrency=2,
    )
    rows = [{k: v for k, v in row.items() if k != "bytes"} for row in answers.take_all()]
    print(json.dumps(rows))
"""


def test_a_ray_data_pipeline_gets_columns_and_a_bad_picture_is_only_its_row(spread: Scene):
    broken = Path(spread.driver.paths[0]).with_name("broken.png")
    broken.write_bytes(b"no picture")
    paths = [*spread.driver.paths[:15], str(broken)]
    done = subprocess.run(
        [sys.executable, "-c", _PIPELINE, spread.driver.address, json.dumps(paths)],
        env=dict(spread.environment), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line, name in zip(done.stdout.splitlines(), ("path", "from"), strict=True):
        rows = {row[name]: row for row in json.loads(line)}
        assert sorted(rows) == sorted(paths)
        bad = rows.pop(str(broken))
        assert (bad["text"], bad["finish"], bad["tokens"]) == ("", "", 0)
        assert "is not a picture that can be read" in bad["error"]
        for path, row in rows.items():
            assert shapes.names(spread.shapes[Path(path)], row["text"]), row
            assert (row["finish"], row["error"], row["host"]) == ("stop", "", "embedded")
            assert row["tokens"] > 0
            assert row["seconds"] > 0
            assert len(row["model_digest"]) == 64


def _actors(home: str) -> list[int]:
    """Return the processes of actors that work on this cluster."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            variables = (process / "environ").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Captioner") and f"HOME={home}\0".encode() in variables:
            found.append(int(process.name))
    return found
