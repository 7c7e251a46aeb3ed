"""Every byte that a daemon holds, held against its manifest and the catalog, on real daemons."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llava_ollama.cli import main
from llava_ollama.daemon import Daemon
from llava_ollama.doctor_store import StoreDoctor
from llava_ollama.errors import DaemonUnreachable, ModelNotInstalled
from llava_ollama.ledger import Identity, Ledger
from llava_ollama.progress import Reporter
from llava_ollama.store import NoStore, Store, find
from llava_ollama.verify import hash_blobs, verify
from tests.conftest import DAEMONS
from tests.daemons.running import RunningDaemon, free_port
from tests.holding import DAMAGES, World, flip, sha256, started, world
from tests.published import rewrite
from tests.stand_ins import stand_in

pytestmark = pytest.mark.ollama
KINDS = ("model", "projector", "template", "params", "config")
REMOTE = NoStore("the store is on another machine", "Run this there")


@pytest.fixture(scope="module", params=DAEMONS)
def own(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    with started(request.param, tmp_path_factory.mktemp("verify")) as daemon:
        yield daemon


@pytest.fixture
def here(own: RunningDaemon, tmp_path: Path) -> Iterator[World]:
    with world(own, tmp_path / "user") as made:
        yield made


class Total(Reporter):
    """Adds up what is told."""

    def __init__(self) -> None:
        self.started_with: list[int | None] = []
        self.bytes = 0

    def started(self, task: str, total: int | None = None) -> None:
        assert task == "verify"
        self.started_with.append(total)

    def advanced(self, task: str, amount: int) -> None:
        assert task == "verify"
        self.bytes += amount


def test_what_is_right_is_sound(here: World):
    here.install()
    before = {p: p.stat() for p in here.running.models.rglob("*") if p.is_file()}
    (report,) = here.verify()
    assert report.verdict == "sound"
    assert (report.name, report.problem, report.not_checked) == ("one:latest", "", "")
    found = {layer.kind: layer for layer in report.layers}
    assert set(found) == set(KINDS)
    assert {layer.state for layer in report.layers} == {"present"}
    assert found["model"].catalog == "tiny-llava int4"
    assert found["projector"].catalog == "tiny-llava projector"
    assert found["template"].catalog == ""
    after = {p: p.stat() for p in here.running.models.rglob("*") if p.is_file()}
    assert {p: (s.st_mtime_ns, s.st_ctime_ns) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_ctime_ns) for p, s in after.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_every_layer_is_found(damage: str, kind: str, here: World):
    # Without a second model, a daemon does not list one whose config is missing.
    here.install()
    make, state = DAMAGES[damage]
    make(here.blob(kind))
    assert here.states() == {**dict.fromkeys(KINDS, "present"), kind: state}
    (report,) = here.verify()
    assert report.verdict == "wrong"


def test_the_time_of_a_file_is_not_believed(here: World):
    """As the ledger would: same size, same mtime, same inode."""
    here.install()
    blob = here.blob("model")
    state = blob.stat()
    _write_a_byte(blob)
    os.utime(blob, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert here.states()["model"] == "corrupt"


def test_all_ours_and_names(here: World, tmp_path: Path):
    here.install("one")
    here.install("by-hand", system="Be brief.")
    other = rewrite(here.files["model"], tmp_path / "other.gguf", {"general.name": "other"})
    here.install_files("other", other, here.files["projector"])
    here.records.drop("installed", here.daemon.host, "other:latest")
    here.records.drop("installed", here.daemon.host, "by-hand:latest")
    assert [r.name for r in here.verify("all")] == ["by-hand:latest", "one:latest", "other:latest"]
    assert [r.name for r in here.verify("ours")] == ["by-hand:latest", "one:latest"]
    assert [r.name for r in here.verify(["other", "other:latest"])] == ["other:latest"]
    assert [r.name for r in here.verify(["library/ONE"])] == ["one:latest"]
    assert here.layers("other")["model"].catalog == ""
    with pytest.raises(ModelNotInstalled) as caught:
        here.verify(["othr"])
    assert caught.value.hint == "Did you mean `other`?"


def test_a_shared_blob_is_read_once(here: World):
    here.install("one")
    here.install("two", system="Be brief.")
    here.reporter = total = Total()
    here.verify("ours")
    files = {here.blob(kind, name) for kind in KINDS for name in ("one", "two")}
    files.add(here.blob("system", "two"))
    size = sum(path.stat().st_size for path in files)
    assert (total.started_with, total.bytes) == ([size], size)


def test_a_blob_that_cannot_be_read_is_unknown(here: World):
    here.install()
    blob = here.blob("projector")
    blob.unlink()
    blob.mkdir()  # as root may read every file
    try:
        (report,) = here.verify()
        assert here.layers()["projector"].state == "unknown"
        assert "directory" in here.layers()["projector"].detail
        assert report.verdict == "unchecked"
    finally:
        blob.rmdir()


def test_an_empty_manifest_is_wrong(here: World):
    here.install()
    manifest = here.running.models / "manifests/registry.ollama.ai/library/one/latest"
    manifest.write_bytes(b"")
    (report,) = here.verify()
    assert report.verdict == "wrong"
    assert "empty" in report.problem


def test_without_the_store_the_digests_are_compared(here: World):
    here.install()
    here.store = REMOTE
    (report,) = here.verify()
    assert report.verdict == "unchecked"
    assert REMOTE.reason in report.not_checked
    assert REMOTE.hint in report.not_checked
    found = {layer.kind: (layer.state, layer.catalog) for layer in report.layers}
    assert found == {
        "model": ("unknown", "tiny-llava int4"),
        "projector": ("unknown", "tiny-llava projector"),
    }
    assert [r.name for r in here.verify("ours")] == ["one:latest"]
    assert here.verify("all") == here.verify("ours")
    with pytest.raises(ModelNotInstalled):
        here.verify(["onne"])


def test_without_the_store_a_missing_file_is_found(here: World):
    here.install()
    here.blob("model").unlink()
    here.store = REMOTE
    (report,) = here.verify()
    assert report.verdict == "wrong"
    # What the daemon shows is from its memory; after a restart it may not show the model at all.
    assert {layer.kind: layer.state for layer in report.layers}.get("model", "missing") == "missing"


def test_the_store_is_found_while_models_are_damaged(here: World):
    here.install()
    here.blob("model").unlink()
    flip(here.blob("projector"))
    assert find(here.daemon, [here.running.models]) == Store(here.running.models)


def test_an_interrupt_ends_the_threads(here: World):
    here.install()

    class Interrupting(Reporter):
        def advanced(self, task: str, amount: int) -> None:
            del task, amount
            raise KeyboardInterrupt

    here.reporter = Interrupting()
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        here.verify()
    assert threading.active_count() == before


def test_no_daemon_is_an_error(here: World):
    here.daemon = Daemon(f"http://127.0.0.1:{free_port()}")
    here.store = REMOTE
    with pytest.raises(DaemonUnreachable):
        here.verify("ours")


def test_two_files_at_once_are_two_right_digests(tmp_path: Path):
    store = Store(tmp_path)
    store.blobs_folder.mkdir()
    wanted = {}
    for number in range(7):
        path = tmp_path / "file"
        path.write_bytes(bytes([number]) * (3_000_000 - number * 400_000))
        wanted[sha256(path)] = path.stat().st_size
        shutil.copy(path, store.blob(sha256(path)))
    found = hash_blobs(store, [*wanted, *wanted, "0" * 64], Reporter())
    assert {digest: (one.sha256, one.size) for digest, one in found.items()} == {
        **{digest: (digest, size) for digest, size in wanted.items()},
        "0" * 64: (None, 0),
    }


def test_two_files_are_read_at_once_and_no_third(tmp_path: Path):
    """Pipes in place of files: a writer gets on only when its reader has begun."""
    store, digests = Store(tmp_path), ["a" * 64, "b" * 64, "c" * 64]
    store.blobs_folder.mkdir()
    for digest in digests:
        os.mkfifo(store.blob(digest))
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(hash_blobs, store, digests, Reporter())
        with store.blob(digests[0]).open("wb") as one, store.blob(digests[1]).open("wb") as two:
            with pytest.raises(OSError, match="No such device"):  # nobody reads it yet
                os.close(os.open(store.blob(digests[2]), os.O_WRONLY | os.O_NONBLOCK))
            one.write(b"one")
            two.write(b"two")
        with store.blob(digests[2]).open("wb") as three:
            three.write(b"three")
        found = done.result(10)
    wanted = [hashlib.sha256(word).hexdigest() for word in (b"one", b"two", b"three")]
    assert [found[digest].sha256 for digest in digests] == wanted


@pytest.fixture(scope="module")
def rewriting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with started("0.34.0", tmp_path_factory.mktemp("rewriting")) as daemon:
        yield daemon


@pytest.fixture
def there(rewriting: RunningDaemon, tmp_path: Path) -> Iterator[World]:
    with world(rewriting, tmp_path / "user") as made:
        yield made


def test_bytes_of_a_rewriting_daemon(there: World):
    there.install()
    model = there.layers()["model"]
    assert model.sha256 != sha256(there.files["model"])
    assert (model.state, model.catalog) == ("rewritten", "tiny-llava int4")
    assert sha256(there.files["model"])[:12] in model.detail
    (report,) = there.verify("ours")
    assert report.verdict == "sound"
    there.store = REMOTE
    assert there.layers()["model"].state == "rewritten"


def test_rewritten_bytes_may_be_corrupt(there: World):
    there.install()
    flip(there.blob("model"))
    assert there.states()["model"] == "corrupt"


def test_rewritten_bytes_are_made_again(there: World):
    there.install()
    blob = there.blob("model")
    whole = blob.read_bytes()
    flip(blob)
    (outcome,) = there.repair()
    assert (outcome.problem, outcome.how) == ("", "create")
    assert blob.read_bytes() == whole
    assert there.states()["model"] == "rewritten"
    assert [m.name for m in there.daemon.models()] == ["one:latest"]


def test_a_suspected_link_is_cleared(here: World):
    """The one use of the ledger: it is told what was proven, for `doctor`, and never asked."""
    here.install()
    assert isinstance(here.store, Store)
    ledger = Ledger(here.folder / "ledger.sqlite3")
    doctor = StoreDoctor(here.store, ledger, quick=0)  # as for a model of some gigabytes
    blob = here.blob("model")
    (here.folder / "link.gguf").hardlink_to(blob)
    manifest = here.running.models / "manifests/registry.ollama.ai/library/one/latest"
    past = manifest.stat().st_mtime_ns - 3600 * 10**9
    os.utime(manifest, ns=(past - 10**9, past - 10**9))
    os.utime(blob, ns=(past, past))
    assert "links" in {finding.check for finding in doctor.examine()}
    ledger.remember("0" * 64, Identity.of(blob))
    verify(here.known, ["one"], here.store, ledger=ledger)
    assert here.states()["model"] == "present"
    assert "links" not in {finding.check for finding in doctor.examine()}

    state = blob.stat()
    _write_a_byte(blob)
    os.utime(blob, ns=(state.st_atime_ns, state.st_mtime_ns))
    (report,) = verify(here.known, ["one"], here.store, ledger=ledger)
    assert report.verdict == "wrong"


def _write_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


class TestCommand:
    @pytest.fixture
    def desk(self, here: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OLLAMA_HOST", here.running.host)
        monkeypatch.setenv("OLLAMA_MODELS", str(here.running.models))
        monkeypatch.setenv("LLAVA_OLLAMA_CATALOG", str(here.folder / "catalog.toml"))
        monkeypatch.setenv("LLAVA_OLLAMA_STATE", str(here.folder / "state"))
        return here

    def test_verify_and_repair(self, desk: World):
        assert "no model of ours" in call("verify").stdout
        desk.install()
        text = call("verify").stdout
        assert text.startswith("one: sound\n")
        assert "tiny-llava int4" in text
        (model,) = data("verify", "one")["models"]
        assert (model["name"], model["verdict"]) == ("one", "sound")
        assert call("repair", "one").stdout == "nothing to mend\n"

        flip(desk.blob("projector"))
        (model,) = data("verify", code=4)["models"]
        assert {x["kind"]: x["state"] for x in model["layers"]}["projector"] == "corrupt"
        assert "Fix: llava-ollama repair one" in call("verify", "--all", code=4).stdout

        (blob,) = data("repair", "one")["blobs"]
        assert (blob["kind"], blob["was"], blob["problem"]) == ("projector", "corrupt", "")
        assert Path(blob["quarantine"]).is_file()
        assert data("verify", "one")["models"][0]["verdict"] == "sound"
        assert "quarantine" in call("doctor").stdout

    def test_exit_codes(self, desk: World, monkeypatch: pytest.MonkeyPatch):
        desk.install()
        call("verify", "one", "--all", code=2)
        call("verify", "onne", code=1)
        desk.blob("params").unlink()
        call("verify", code=4)
        call("doctor", code=4)
        call("repair", "one")
        desk.blob("config").unlink()  # then the daemon does not list it, nor tell its folder
        call("repair", "one")
        assert desk.verify()[0].verdict == "sound"
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
        call("verify", code=3)
        call("repair", "one", code=3)

    @pytest.mark.usefixtures("desk")
    def test_what_could_not_be_checked_is_said(self, monkeypatch: pytest.MonkeyPatch):
        with stand_in("elsewhere") as host:
            monkeypatch.setenv("OLLAMA_HOST", host)
            (model,) = data("verify", "one", code=1)["models"]
            assert "not on this machine" in model["not_checked"]
            assert {layer["state"] for layer in model["layers"]} == {"unknown"}
            assert "Not checked: " in call("verify", "one", code=1).stdout
            assert "no file could be read" in call("repair", "one", code=1).stderr


def call(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="llava-ollama")
    assert done.exit_code == code, done.output
    return done


def data(*arguments: str, code: int = 0):
    return json.loads(call(*arguments, "--json", code=code).stdout)
