"""The daemon's store: which folder it is, what is in it, and how a blob gets there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from llava_ollama import resources, store
from llava_ollama.daemon import Daemon
from llava_ollama.errors import StoreError
from llava_ollama.records import Records
from llava_ollama.settings import Settings
from llava_ollama.store import NoStore, Store, manifests
from tests.conftest import start
from tests.daemons.running import RunningDaemon

PAIR = ("tiny-llava-int4.gguf", "tiny-llava-mmproj-f16.gguf")
NOBODY = 65534


CONTAINED = Path("/nowhere/.ollama/models")


class Contained(Daemon):
    """A daemon that names its folder as it is in its own container."""

    def models_folder(self, name: str) -> Path | None:
        del name
        return CONTAINED


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "state")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    (tmp_path / "models" / "blobs").mkdir(parents=True)
    (tmp_path / "models" / "manifests").mkdir()
    return Store(tmp_path / "models")


def install(daemon: Daemon, name: str) -> list[str]:
    """Install the tiny pair by the API alone; return its digests."""
    digests = []
    for file in PAIR:
        data = resources.bundled(file).read_bytes()
        digests.append(hashlib.sha256(data).hexdigest())
        if not daemon.has_blob(digests[-1]):
            daemon.upload(digests[-1], len(data), iter([data]))
    files = dict(zip(("model.gguf", "projector.gguf"), digests, strict=True))
    for _ in daemon.create(name, files=files, template="{{ .Prompt }}", system="", parameters={}):
        pass
    return digests


@pytest.fixture(params=("0.24.0", "0.34.4"))
def empty_daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningDaemon]:
    running = start(str(request.param), tmp_path / "empty")
    yield running
    running.stop()


@contextmanager
def client(
    running: RunningDaemon, host: str | None = None, kind: type[Daemon] = Daemon
) -> Iterator[Daemon]:
    daemon = kind(host or running.host)
    yield daemon
    daemon.close()


def snapshot(root: Path) -> dict[str, int]:
    """Return what is there; 0.34 fills a `metadata/` of its own beside as it lists."""
    paths = [p for part in ("blobs", "manifests") for p in (root / part).rglob("*")]
    return {str(p): p.stat().st_mtime_ns for p in paths}


@pytest.mark.ollama
class TestFind:
    def test_by_what_the_daemon_says(self, ollama: RunningDaemon, daemon: Daemon) -> None:
        install(daemon, "found")
        before = snapshot(ollama.models)
        assert store.find(daemon, []) == Store(ollama.models)
        assert snapshot(ollama.models) == before

    def test_a_folder_that_is_shared_under_another_path(
        self, ollama: RunningDaemon, daemon: Daemon, tmp_path: Path
    ) -> None:
        install(daemon, "found")
        (tmp_path / "mounted").symlink_to(ollama.models)
        found = store.find(daemon, [tmp_path / "nowhere", tmp_path / "mounted"])
        assert isinstance(found, Store)

    def test_a_folder_with_the_same_models_is_another_daemons(
        self, empty_daemon: RunningDaemon, tmp_path: Path
    ) -> None:
        """As where a container's store has the path and the models of one that is here as well."""
        with client(empty_daemon) as daemon:
            install(daemon, "same")
            shutil.copytree(empty_daemon.models, tmp_path / "copy", copy_function=shutil.copy)
        with client(empty_daemon, kind=Contained) as daemon:
            found = store.find(daemon, [tmp_path / "copy"])
            assert isinstance(found, NoStore)
            found = store.find(daemon, [tmp_path / "copy", empty_daemon.models])
            assert found == Store(empty_daemon.models)

    def test_a_daemon_that_is_not_on_this_machine(
        self, ollama: RunningDaemon, daemon: Daemon
    ) -> None:
        install(daemon, "found")
        with client(ollama, "http://192.0.2.1:11434") as remote:
            found = store.find(remote, [ollama.models])
        assert isinstance(found, NoStore)
        assert "another machine" in found.reason
        assert "--host 127.0.0.1" in found.hint

    def test_a_folder_that_is_only_on_the_daemons_side(self, ollama: RunningDaemon) -> None:
        with client(ollama, kind=Contained) as daemon:
            install(daemon, "found")
            found = store.find(daemon, [])
        assert isinstance(found, NoStore)
        assert f"`{CONTAINED}`" in found.reason
        assert "container" in found.reason
        assert "OLLAMA_MODELS" in found.hint

    def test_a_folder_that_this_user_may_not_search(
        self, ollama: RunningDaemon, daemon: Daemon
    ) -> None:
        install(daemon, "found")
        if os.geteuid() != 0:
            pytest.skip("needs root, to become another user")
        ollama.models.chmod(0o700)
        try:
            with _as_nobody(ollama.folder):
                found = store.find(daemon, [ollama.models])
        finally:
            ollama.models.chmod(0o755)
        assert isinstance(found, NoStore)
        assert "cannot read" in found.reason
        assert "sudo" in found.hint

    def test_an_empty_daemon_says_nothing(self, empty_daemon: RunningDaemon) -> None:
        with client(empty_daemon) as daemon:
            before = snapshot(empty_daemon.models)
            found = store.find(daemon, [empty_daemon.models, Path("/nowhere")])
            assert isinstance(found, NoStore)
            assert found.unproven == (empty_daemon.models,)
            assert snapshot(empty_daemon.models) == before


@pytest.mark.ollama
class TestProve:
    def test_the_right_one_among_several(
        self, empty_daemon: RunningDaemon, folder: Store, records: Records
    ) -> None:
        with client(empty_daemon) as daemon:
            found = store.prove(daemon, [folder.folder, empty_daemon.models], records)
        assert found == Store(empty_daemon.models)
        assert not list(found.blobs())
        assert not list(folder.blobs())
        assert not list(records.all("probe"))

    def test_none_of_them(
        self, empty_daemon: RunningDaemon, folder: Store, records: Records, tmp_path: Path
    ) -> None:
        with client(empty_daemon) as daemon:
            found = store.prove(daemon, [folder.folder, tmp_path / "nowhere"], records)
        assert isinstance(found, NoStore)
        assert "not one of those known here" in found.reason
        assert "OLLAMA_MODELS" in found.hint
        assert not list(folder.blobs())

    def test_what_a_kill_left_is_known_and_removed(
        self, empty_daemon: RunningDaemon, records: Records, tmp_path: Path
    ) -> None:
        """Killed at every instant: before the file, with half of it, with all of it."""
        code = (
            "import sys, os, signal; from pathlib import Path\n"
            "from llava_ollama import store\n"
            "from llava_ollama.daemon import Daemon\n"
            "from llava_ollama.records import Records\n"
            "class Killed(Daemon):\n"
            "    def has_blob(self, digest):\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "store.prove(Killed(sys.argv[1]), [Path(sys.argv[2])], Records(Path(sys.argv[3])))\n"
        )
        command = [sys.executable, "-c", code, empty_daemon.host, str(empty_daemon.models)]
        done = subprocess.run([*command, str(tmp_path / "state")], check=False)
        assert done.returncode == -9
        assert len(list(Store(empty_daemon.models).blobs())) == 1
        store.recover(records)
        assert not list(Store(empty_daemon.models).blobs())
        assert not list(records.all("probe"))

    def test_only_a_probe_is_removed(self, folder: Store, records: Records) -> None:
        content = b"x" * 33
        path = folder.blob(hashlib.sha256(content).hexdigest())
        path.write_bytes(content)
        other = folder.folder / "precious"
        other.write_bytes(b"x" * 32)
        for target in (path, other):
            records.put("probe", str(target), record={"path": str(target)})
        store.recover(records)
        assert path.exists()
        assert other.exists()
        assert not list(records.all("probe"))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave a file that others may not")
    def test_one_that_may_not_be_removed_stays_known(
        self, folder: Store, records: Records, tmp_path: Path
    ) -> None:
        """As `sudo` leaves it, when it is killed."""
        content = b"x" * 32
        path = folder.blob(hashlib.sha256(content).hexdigest())
        path.write_bytes(content)
        records.put("probe", str(path), record={"path": str(path)})
        for each in (tmp_path, *tmp_path.rglob("probe")):
            each.chmod(0o777)
        with _as_nobody(tmp_path):
            store.recover(records)
        assert path.exists()
        assert list(records.all("probe"))
        store.recover(records)
        assert not path.exists()
        assert not list(records.all("probe"))


@pytest.mark.ollama
def test_what_is_in_it(daemon: Daemon) -> None:
    digests = install(daemon, "read")
    daemon.copy("read", "someone/read:v2")
    found = store.find(daemon, [])
    assert isinstance(found, Store)
    by_name = {m.name: m for m in found.manifests()}
    assert {"read:latest", "someone/read:v2"} <= set(by_name)
    manifest = by_name["read:latest"]
    assert manifest.problem is None
    assert manifest.files() == set(digests)
    assert manifest.digest == {m.name: m.manifest_digest for m in daemon.models()}["read:latest"]
    blobs = {b.sha256: b for b in found.blobs()}
    for layer in manifest.blobs:
        assert blobs[layer.sha256].size == layer.size
        content = found.blob(layer.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == layer.sha256


class TestManifests:
    LAYER: ClassVar = {"mediaType": manifests.MODEL, "digest": f"sha256:{'a' * 64}", "size": 1}

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (b"", "empty"),
            (b"{", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"[]", "no layers"),
            (b'{"layers": {}}', "no layers"),
            (b'{"layers": [1]}', "a layer"),
            (b'{"layers": [{"digest": "sha256:12", "size": 1}]}', "no digest"),
            (b'{"layers": [{"digest": "../../etc/passwd", "size": 1}]}', "no digest"),
            (json.dumps({"layers": [{**LAYER, "size": -1}]}).encode(), "no size"),
            (json.dumps({"layers": [{**LAYER, "size": "1"}]}).encode(), "no size"),
            (json.dumps({"layers": [LAYER], "config": {"digest": 5}}).encode(), "no digest"),
            (b" " * (manifests.LARGEST + 1), "more than"),
        ],
    )
    def test_nothing_is_trusted(self, text: bytes, problem: str) -> None:
        manifest = manifests.parse(text, "x:latest")
        assert manifest.problem is not None
        assert problem in manifest.problem
        assert not manifest.blobs

    def test_names_are_the_daemons(self) -> None:
        assert manifests.display_name("registry.ollama.ai", "library", "x", "y") == "x:y"
        assert manifests.display_name("registry.ollama.ai", "me", "x", "y") == "me/x:y"
        assert manifests.display_name("127.0.0.1:5", "library", "x", "y") == (
            "127.0.0.1:5/library/x:y"
        )

    def test_a_broken_one_is_named_and_what_is_none_is_left_out(self, folder: Store) -> None:
        library = folder.folder / "manifests" / "registry.ollama.ai" / "library"
        (library / "good").mkdir(parents=True)
        (library / "good" / "latest").write_text(json.dumps({"layers": [self.LAYER]}))
        (library / "good" / "broken").write_bytes(b"")
        (library / "good" / "folder").mkdir()
        (library / "stray").write_text("{}")
        found = {m.name: m.problem for m in folder.manifests()}
        assert found == {"good:broken": "it is empty", "good:latest": None}


class TestPut:
    def test_whole_with_the_stores_owner_and_mode(self, folder: Store) -> None:
        folder.blobs_folder.chmod(0o750)
        if os.geteuid() == 0:
            os.chown(folder.blobs_folder, NOBODY, NOBODY)
        folder.put("a" * 64, lambda file: os.write(file, b"content"))
        path = folder.blob("a" * 64)
        assert path.read_bytes() == b"content"
        assert path.stat().st_mode & 0o777 == 0o640
        expected = folder.blobs_folder.stat()
        assert (path.stat().st_uid, path.stat().st_gid) == (expected.st_uid, expected.st_gid)
        assert [b.path for b in folder.blobs()] == [path]

    def test_not_at_all_when_writing_fails(self, folder: Store) -> None:
        def fail(file: int) -> None:
            os.write(file, b"half")
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            folder.put("a" * 64, fail)
        assert not list(folder.blobs())

    def test_a_killed_ones_leftover_goes_and_a_live_ones_stays(self, folder: Store) -> None:
        code = (
            "import sys, os, signal; from pathlib import Path\n"
            "from llava_ollama.store import Store\n"
            "def write(file):\n"
            "    os.write(file, b'half'); print(flush=True); sys.stdin.read()\n"
            "Store(Path(sys.argv[1])).put('b' * 64, write)\n"
        )
        command = [sys.executable, "-c", code, str(folder.folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        folder.clear()
        left = [b.sha256 for b in folder.blobs()]
        assert left == [None]
        process.kill()
        process.communicate()
        assert [b.sha256 for b in folder.blobs()] == [None]
        folder.clear()
        assert not list(folder.blobs())

    def test_of_another_user(self, tmp_path: Path) -> None:
        theirs = Store(tmp_path / "models")
        theirs.folder.mkdir()
        if os.geteuid() == 0:
            theirs.blobs_folder.mkdir()
            with _as_nobody(tmp_path):
                reason = theirs.not_writable
        else:
            theirs.blobs_folder.symlink_to("/usr")
            reason = theirs.not_writable
        assert reason is not None
        assert "belongs to the user `root`" in reason

    def test_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be read"):
            list(Store(tmp_path).blobs())


@contextmanager
def _as_nobody(folder: Path) -> Iterator[None]:
    """Be another user for a while, one who may come as far as `folder`."""
    closed = {p: p.stat().st_mode for p in (folder, *folder.parents) if not p.stat().st_mode & 1}
    for path, mode in closed.items():
        path.chmod(mode | 0o055)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in closed.items():
            path.chmod(mode)


def test_a_digest_names_a_blob(folder: Store) -> None:
    digest = secrets.token_hex(32)
    folder.blob(digest).write_bytes(b"1")
    (folder.blobs_folder / f"sha256-{digest}-partial").write_bytes(b"22")
    assert [(b.sha256, b.size) for b in folder.blobs()] == [(digest, 1), (None, 2)]


def test_the_candidates_come_from_the_settings(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "OLLAMA_MODELS": "~/own"}
    found = Settings.read(environment=environment, platform="linux").models
    assert found[:2] == (tmp_path / "own", tmp_path / ".ollama" / "models")
    assert Path("/usr/share/ollama/.ollama/models") in found
    found = Settings.read(environment={"HOME": str(tmp_path)}, platform="darwin").models
    assert found == (tmp_path / ".ollama" / "models",)
