"""Bad blobs go into quarantine and the right bytes come back, on real daemons."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ollama import Llava, inventory
from llava_ollama.doctor_store import StoreDoctor
from llava_ollama.errors import CheckFailed, ModelBroken, ModelNotInstalled, StoreError
from llava_ollama.gguf import reader
from llava_ollama.ledger import Ledger
from llava_ollama.progress import Reporter
from llava_ollama.store import NoStore, Store
from llava_ollama.tiny.check import check
from tests.conftest import DAEMONS
from tests.daemons.running import RunningDaemon
from tests.holding import DAMAGES, World, flip, sha256, started, world
from tests.hub import LoopbackHub
from tests.large import padded
from tests.published import rewrite
from tests.registry import LoopbackRegistry

pytestmark = pytest.mark.ollama
KINDS = ("model", "projector", "template", "params", "config")
REMOTE = NoStore("the store is on another machine", "Run this there")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module", params=DAEMONS)
def own(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    with started(request.param, tmp_path_factory.mktemp("repair")) as daemon:
        yield daemon


@pytest.fixture
def here(own: RunningDaemon, tmp_path: Path) -> Iterator[World]:
    with world(own, tmp_path / "user") as made:
        yield made


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def names(here: World) -> set[str]:
    return {model.name for model in here.daemon.models()}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_mended(damage: str, kind: str, here: World):
    here.install("one")
    here.install("other", system="Be brief.")  # has the other blobs as well, but for its system
    make, was = DAMAGES[damage]
    blob = here.blob(kind)
    whole = blob.read_bytes()
    make(blob)
    bad = blob.read_bytes() if blob.exists() else None

    (outcome,) = here.repair()

    assert (outcome.kind, outcome.was, outcome.problem) == (kind, was, "")
    assert blob.read_bytes() == whole
    (report,) = here.verify()
    assert report.verdict == "sound"
    assert [path.read_bytes() for path in here.quarantined] == ([bad] if bad is not None else [])
    assert outcome.quarantine == (here.quarantined[0] if bad is not None else None)
    assert names(here) == {"one:latest", "other:latest"}
    assert here.repair() == []


def test_a_mended_model_sees_again(here: World):
    """Also one that was loaded from the bad bytes: the daemon has to let go of them."""
    here.install()
    blob = here.blob("projector")
    with blob.open("r+b") as file:
        start = file.seek(reader.read(blob).data_offset)
        file.write(bytes(blob.stat().st_size - start))
    llava = Llava("one", host=here.running.host)
    try:
        with pytest.raises(CheckFailed):
            check(llava)
        here.repair()
        check(llava)
    finally:
        llava.close()


def test_a_shared_blob_is_mended_once(here: World):
    here.install("one")
    here.install("two", system="Be brief.")
    flip(here.blob("model"))
    here.blob("params").unlink()
    found = here.repair(["one", "two"])
    assert {(x.kind, x.models, x.problem) for x in found} == {
        ("model", ("one:latest", "two:latest"), ""),
        ("params", ("one:latest", "two:latest"), ""),
    }
    assert len(found) == 2
    assert {report.verdict for report in here.verify("ours")} == {"sound"}


def test_a_mended_file_needs_no_copy(here: World):
    """The cheapest transfer is a link, on a file system where that can be."""
    here.install()
    here.blob("model").unlink()
    here.blob("params").unlink()  # to be written again by a `create`, which touches the other
    outcome, written = here.repair()
    assert (written.kind, written.problem) == ("params", "")
    assert outcome.how in {"hard link", "reflink", "copy"}
    if here.folder.stat().st_dev == here.running.models.stat().st_dev:
        assert outcome.how in {"hard link", "reflink"}
    assert isinstance(here.store, Store)
    # A link whose time is later than the manifest's is not suspected: the ledger knows it.
    doctor = StoreDoctor(here.store, Ledger(here.folder / "ledger.sqlite3"))
    assert "links" not in {finding.check for finding in doctor.examine()}
    assert here.verify()[0].verdict == "sound"


def test_two_at_once_mend_once(here: World):
    here.install("one")
    here.install("two", system="Be brief.")
    flip(here.blob("model"))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(here.repair, [["one"], ["two"]]))
    assert sorted(map(len, found)) == [0, 1]
    assert len(here.quarantined) == 1
    assert {report.verdict for report in here.verify("ours")} == {"sound"}


def test_what_cannot_be_had_stays_as_it_was(here: World, tmp_path: Path):
    own = rewrite(here.files["model"], tmp_path / "own.gguf", {"general.name": "own"})
    here.install_files("one", own, here.files["projector"])
    flip(here.blob("model"))
    before = contents(here.running.models)
    (outcome,) = here.repair()
    assert "is known" in outcome.problem
    assert "--dir" in outcome.hint
    assert (outcome.how, outcome.quarantine) == ("", None)
    assert contents(here.running.models) == before

    (tmp_path / "a link to nothing").symlink_to("nowhere")
    here.weights = replace(here.weights, folders=(tmp_path,))
    (outcome,) = here.repair()
    assert outcome.problem == ""
    assert sha256(here.blob("model")) == here.blob("model").name.removeprefix("sha256-")


def test_words_that_nobody_knows_stay_as_they_were(here: World):
    here.install(system="Words of the user's.")
    flip(here.blob("system"))
    here.running.stop()  # it has them in its memory
    here.running.start()
    before = contents(here.running.models)
    (outcome,) = here.repair()
    assert "made again" in outcome.problem
    assert "--force" in outcome.hint
    # 0.34 leaves small layers of its own.
    small = {p: b for p, b in contents(here.running.models).items() if p not in before}
    assert all(len(data) < 200 for data in small.values())
    assert {p: b for p, b in contents(here.running.models).items() if p in before} == before
    assert here.quarantined == []


def test_a_damaged_source_is_passed_over(here: World):
    """The blob may be one file with its source, which then has the same damage."""
    here.install()
    with LoopbackHub() as hub:
        file = hub.publish(Path(shutil.copy(here.files["projector"], here.folder / "p")), "o/r")
        more = f', repo = "o/r", revision = "{file.revision}"'
        here.catalog = here.own_catalog(more)
        entry = here.catalog.entries["tiny-llava"]
        entry = replace(entry, projector=replace(file, sha256=entry.projector.sha256))
        here.catalog = replace(here.catalog, entries={"tiny-llava": entry})
        given = here.folder / "given"
        given.mkdir()
        damaged = Path(shutil.copy(here.files["projector"], given / file.name))
        flip(damaged)
        flip(here.blob("projector"))
        here.weights = replace(
            here.weights, endpoint=hub.url, hub_cache=here.folder / "cache", folders=(given,)
        )
        here.reporter = notes = Notes()
        (outcome,) = here.repair()
    assert outcome.problem == ""
    assert any("passed over" in note for note in notes.notes)
    assert here.states()["projector"] == "present"
    # What was downloaded only for this is gone again; the user's file is as it was.
    assert not [
        p for p in (here.folder / "downloads").rglob("*") if p.is_file() and p.stat().st_size
    ]
    assert sha256(damaged) != sha256(here.files["projector"])


@pytest.mark.parametrize("store", ["here", "remote"])
def test_the_daemon_fetches_what_cannot_be_had_here(store: str, here: World):
    here.install()
    files = (here.files["model"], here.files["projector"])
    tag = f"x{here.folder.parent.name.replace('_', '-')}:f16"
    more = f', repo = "o/r", library = "{tag}", size = 1'
    here.catalog = here.own_catalog(more)
    here.weights = replace(here.weights, endpoint=NOWHERE, hub_cache=here.folder / "cache")
    blob = here.blob("model")
    if store == "remote":
        blob.unlink()
        here.store = REMOTE
    else:
        flip(blob)
    with LoopbackRegistry() as registry:
        registry.publish(tag, *files)
        (outcome,) = here.repair(registry=registry.url)
    assert (outcome.problem, outcome.how) == ("", "pull")
    assert sha256(blob) == sha256(files[0])
    assert names(here) == {"one:latest"}

    blob.unlink()
    (outcome,) = here.repair(registry=NOWHERE)
    assert outcome.problem
    assert outcome.was == "missing"


def test_without_the_store_a_missing_file_is_sent(here: World):
    here.install()
    here.blob("projector").unlink()
    here.store = REMOTE
    (outcome,) = here.repair()
    assert (outcome.problem, outcome.how) == ("", "upload")


def test_a_kill_in_between_leaves_what_the_next_run_mends(here: World):
    here.install()
    blob = here.blob("projector")
    flip(blob)
    bad = blob.read_bytes()
    killed = (
        "import os, sys; from pathlib import Path; from llava_ollama import quarantine, store\n"
        "with quarantine.aside(store.Store(Path(sys.argv[1])), sys.argv[2]): os._exit(9)"
    )
    digest = blob.name.removeprefix("sha256-")
    command = [sys.executable, "-c", killed, str(here.running.models), digest]
    assert subprocess.run(command, check=False).returncode == 9
    assert here.states()["projector"] == "missing"
    assert [path.read_bytes() for path in here.quarantined] == [bad]
    (outcome,) = here.repair()
    assert outcome.problem == ""
    assert here.states()["projector"] == "present"


def test_a_store_that_cannot_be_written_is_left_alone(here: World):
    here.install()
    flip(here.blob("projector"))
    (here.running.models / "quarantine").write_bytes(b"in the way")  # permissions stop no root
    before = contents(here.running.models)
    (outcome,) = here.repair()
    assert "cannot be written" in outcome.problem
    assert contents(here.running.models) == before
    (here.running.models / "quarantine").unlink()


def test_a_broken_manifest_is_not_guessed(here: World):
    here.install()
    manifest = here.running.models / "manifests/registry.ollama.ai/library/one/latest"
    manifest.write_bytes(b"{}")
    with pytest.raises(StoreError) as caught:
        here.repair()
    assert "manifest" in caught.value.message
    with pytest.raises(ModelNotInstalled):
        here.repair(["nobody"])


@pytest.mark.soak
def test_a_flipped_bit_in_5_gb(here: World):
    big = padded(here.files["model"], here.folder / "big.gguf", 5_000_000_000)
    here.install_files("one", big, here.files["projector"])
    blob = here.blob("model")
    with blob.open("r+b") as file:
        file.seek(3_210_987_654)
        byte = file.read(1)[0]
        file.seek(3_210_987_654)
        file.write(bytes([byte ^ 0x10]))
    assert here.states()["model"] == "corrupt"
    here.weights = replace(here.weights, folders=(here.folder,))
    (outcome,) = here.repair()
    assert (outcome.problem, outcome.was) == ("", "corrupt")
    assert here.states()["model"] == "present"


@pytest.mark.parametrize("kind", ["model", "projector"])
def test_a_model_whose_file_is_gone_is_damaged_and_installed_again(kind: str, here: World):
    """Some daemons go on showing it, and deny it when they are to run it."""
    here.install("one")
    (listed,) = inventory.installed(here.daemon, here.catalog, here.records)
    assert not listed.damaged
    here.blob(kind).unlink()
    (listed,) = inventory.installed(here.daemon, here.catalog, here.records)
    assert (listed.name, listed.damaged, listed.catalog) == ("one:latest", True, "")
    with Llava("one", host=here.daemon.host) as llava, pytest.raises(ModelBroken) as caught:
        check(llava)
    assert caught.value.message == "the model `one` is damaged: its model file is missing"
    assert caught.value.hint == "Bring it back with `llava-ollama repair one`"
    here.install("one")
    (listed,) = inventory.installed(here.daemon, here.catalog, here.records)
    assert not listed.damaged
    assert set(here.states().values()) <= {"present", "rewritten"}
