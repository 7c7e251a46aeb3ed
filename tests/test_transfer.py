"""One suite for every way of bringing bytes into a daemon, on real daemons."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llava_ollama import Llava, modelfile, resources, store
from llava_ollama.catalog import LLAMA3_PARAMETERS
from llava_ollama.daemon import Daemon
from llava_ollama.errors import ChecksumMismatch, DaemonError, StoreError
from llava_ollama.ledger import Ledger
from llava_ollama.progress import SILENT, Reporter
from llava_ollama.records import Records
from llava_ollama.store import NoStore, Store
from llava_ollama.tiny.check import check
from llava_ollama.transfer import Blob, Brought, Cost, Link, Pull, Transfer, Upload, choose, pull
from tests.daemons.running import RunningDaemon
from tests.large import padded
from tests.published import rewrite
from tests.registry import LoopbackRegistry

pytestmark = pytest.mark.ollama
WAYS = ("link", "upload", "pull")
LOCAL = ("link", "upload")
SOURCES = ("tiny-llava-int4.gguf", "tiny-llava-mmproj-f16.gguf")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blob_of(path: Path) -> Blob:
    return Blob(path, sha256(path), path.stat().st_size)


class Reads(Reporter):
    """Counts bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def advanced(self, task: str, amount: int) -> None:
        del task
        self.bytes += amount


class At(Reporter):
    """Does something once, as soon as a task whose name begins so has got so far."""

    def __init__(self, task: str, size: int, what: Callable[[], object]) -> None:
        self._task = task
        self._left = size
        self._what = what
        self._done = False

    def advanced(self, task: str, amount: int) -> None:
        if task.startswith(self._task):
            self._left -= amount
            if self._left <= 0 and not self._done:
                self._done = True
                self._what()


@dataclass
class World:
    """A daemon, a pair that it does not have, and all that the ways need."""

    running: RunningDaemon
    daemon: Daemon
    store: Store
    registry: LoopbackRegistry
    folder: Path
    token: str
    files: tuple[Path, Path]

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.sqlite3")

    @property
    def records(self) -> Records:
        return Records(self.folder / "state")

    @property
    def tag(self) -> str:
        return f"x{self.token}:f16"

    @property
    def pulled(self) -> str:
        return f"127.0.0.1:{self.registry.port}/library/{self.tag}"

    def make(self, way: str) -> Transfer:
        if way == "link":
            return Link(self.daemon, self.store, self.ledger)
        if way == "upload":
            return Upload(self.daemon, self.ledger)
        wanted = frozenset(map(sha256, self.files))
        return Pull(self.daemon, self.records, self.tag, wanted, registry=self.registry.url)

    def blobs(self, way: str) -> list[Blob]:
        found = [blob_of(path) for path in self.files]
        return [replace(blob, path=None) for blob in found] if way == "pull" else found

    def create(self, name: str) -> None:
        names = ("model.gguf", "projector.gguf")
        for _ in self.daemon.create(
            name,
            files=dict(zip(names, map(sha256, self.files), strict=True)),
            template=modelfile.chat_template(),
            system="",
            parameters={**LLAMA3_PARAMETERS, "num_thread": 1},
        ):
            pass

    def install(self, way: str, name: str) -> list[Brought]:
        transfer, blobs = self.make(way), self.blobs(way)
        brought = [transfer.bring(blob, SILENT) for blob in blobs]
        self.create(name)
        transfer.settle(blobs, SILENT, registered=True)
        return brought

    def names(self) -> set[str]:
        return {model.name for model in self.daemon.models()}

    def leftovers(self) -> list[str]:
        """Return the files of `blobs/` that are no blobs, and blobs that have other bytes."""
        return [
            blob.path.name
            for blob in self.store.blobs()
            if blob.sha256 is None or sha256(blob.path) != blob.sha256
        ]


@pytest.fixture
def world(ollama: RunningDaemon, daemon: Daemon, tmp_path: Path) -> Iterator[World]:
    token = secrets.token_hex(4)
    model, projector = (
        rewrite(resources.bundled(name), tmp_path / f"{token}-{name}", {"general.name": token})
        for name in SOURCES
    )
    with LoopbackRegistry() as registry:
        files = (model, projector)
        registry.publish(f"x{token}:f16", *files)
        here = Store(ollama.models)
        yield World(ollama, daemon, here, registry, tmp_path, token, files)


def expected(way: str, world: World) -> str:
    """Return how the bytes must get there; whether reflinks are is asked by another program."""
    if way != "link":
        return way
    clone = world.store.blobs_folder / "try"
    command = ["cp", "--reflink=always", str(world.files[0]), str(clone)]
    has_reflinks = subprocess.run(command, capture_output=True, check=False).returncode == 0
    clone.unlink(missing_ok=True)
    return "reflink" if has_reflinks else "hard link"


@pytest.mark.parametrize("way", WAYS)
class TestEveryWay:
    def test_brings_the_bytes_and_the_model_answers(self, world: World, way: str) -> None:
        name = f"brought-{world.token}"
        brought = world.install(way, name)
        assert [b.how for b in brought] == [expected(way, world)] * 2
        sizes = [path.stat().st_size for path in world.files]
        assert [b.written for b in brought] == ([0, 0] if way == "link" else sizes)
        for blob in world.blobs(way):
            assert world.daemon.has_blob(blob.sha256)
            assert sha256(world.store.blob(blob.sha256)) == blob.sha256
        manifest = next(m for m in world.store.manifests() if m.name == f"{name}:latest")
        assert manifest.files() == {blob.sha256 for blob in world.blobs(way)}
        with Llava(name, host=world.daemon.host) as llava:
            check(llava)
        assert world.pulled not in world.names()
        assert not list(world.records.all("pulled"))

    def test_what_is_there_is_skipped(self, world: World, way: str) -> None:
        world.install("upload", f"first-{world.token}")
        transfer, reads = world.make(way), Reads()
        for blob in world.blobs(way):
            assert transfer.bring(blob, reads) == Brought("there")
        transfer.settle(world.blobs(way), reads, registered=True)
        assert reads.bytes == 0
        assert world.registry.blobs_asked_for() == 0

    def test_copy_list_and_remove_work_as_ever(self, world: World, way: str) -> None:
        name = f"kept-{world.token}"
        world.install(way, name)
        world.running.cli("cp", name, f"{name}-copy")
        assert name in world.running.cli("list")
        world.running.cli("rm", name)
        with Llava(f"{name}-copy", host=world.daemon.host) as llava:
            check(llava)
        world.running.cli("rm", f"{name}-copy")
        for blob, path in zip(world.blobs(way), world.files, strict=True):
            assert not world.daemon.has_blob(blob.sha256)
            assert sha256(path) == blob.sha256
        if way != "pull":  # 0.24.0 takes a second for each blob
            assert world.install(way, name)[0].how == expected(way, world)

    def test_killed_in_the_middle(self, world: World, way: str) -> None:
        model = padded(world.files[0], world.folder / "large.gguf", 12_000_000)
        world.files = (model, world.files[1])
        world.registry.publish(world.tag, *world.files)
        world.registry.hang_after = 8_000_000
        _killed(world, way)
        world.registry.hang_after = None
        world.registry.resume.set()
        assert not world.daemon.has_blob(sha256(model))
        name = f"again-{world.token}"
        pull.recover(world.daemon, world.records)
        world.install(way, name)
        assert sha256(world.store.blob(sha256(model))) == sha256(model)
        assert f"{name}:latest" in world.names()
        assert not world.leftovers()
        assert world.pulled not in world.names()

    def test_several_at_once(self, world: World, way: str) -> None:
        failures: list[BaseException] = []
        number = 2 if way == "pull" else 4
        barrier = threading.Barrier(number)

        def work() -> None:
            daemon = Daemon(world.daemon.host)
            transfer = replace(world, daemon=daemon).make(way)
            barrier.wait()
            try:
                for blob in world.blobs(way):
                    transfer.bring(blob, SILENT)
                if way == "pull":
                    transfer.settle(world.blobs(way), SILENT, registered=False)
            except BaseException as exc:
                failures.append(exc)
                raise
            finally:
                daemon.close()

        threads = [threading.Thread(target=work) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert not world.leftovers()
        if way != "pull":  # there each took its own name away again, and its blobs with it
            assert all(world.daemon.has_blob(blob.sha256) for blob in world.blobs(way))

    def test_wrong_bytes_never_arrive(self, world: World, way: str) -> None:
        data = bytearray(world.files[0].read_bytes())
        data[-1] ^= 1
        wrong = world.folder / "wrong.gguf"
        wrong.write_bytes(data)
        blob = world.blobs(way)[0]
        world.registry.blobs[blob.sha256] = wrong
        if way != "pull":
            blob = replace(blob, path=wrong)
        with pytest.raises(DaemonError if way == "pull" else ChecksumMismatch):
            world.make(way).bring(blob, SILENT)
        assert not world.daemon.has_blob(blob.sha256)
        assert not world.daemon.has_blob(sha256(wrong))
        assert not list(world.records.all("pulled"))


_KILLED = """
import os, signal, sys
from pathlib import Path
from llava_ollama.daemon import Daemon
from llava_ollama.ledger import Ledger
from llava_ollama.progress import Reporter
from llava_ollama.records import Records
from llava_ollama.store import Store
from llava_ollama.transfer import Blob, Link, Pull, Upload

way, host, models, folder, file, sha256, size, other, tag, registry = sys.argv[1:]
daemon, ledger = Daemon(host), Ledger(Path(folder) / "ledger.sqlite3")

class Killer(Reporter):
    done = 0

    def advanced(self, task, amount):
        self.done += amount
        if self.done > 6_000_000:
            os.kill(os.getpid(), signal.SIGKILL)

if way == "link":
    transfer = Link(daemon, Store(Path(models)), ledger)
elif way == "upload":
    transfer = Upload(daemon, ledger)
else:
    records = Records(Path(folder) / "state")
    transfer = Pull(daemon, records, tag, frozenset((sha256, other)), registry=registry)
transfer.bring(Blob(None if way == "pull" else Path(file), sha256, int(size)), Killer())
"""


def _killed(world: World, way: str) -> None:
    """Bring the model in a process that dies when 6 MB of it have passed by."""
    model, projector = world.files
    arguments = [way, world.daemon.host, world.store.folder, world.folder, model, sha256(model)]
    arguments += [model.stat().st_size, sha256(projector), world.tag, world.registry.url]
    command = [sys.executable, "-c", _KILLED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("way", LOCAL)
class TestFilesOfThisMachine:
    def test_are_read_once_even_after_rm(self, world: World, way: str) -> None:
        name = f"once-{world.token}"
        world.install(way, name)
        for path in world.files:
            assert world.ledger.known(path) is not None
        world.running.cli("rm", name)
        transfer = world.make(way)
        for path, blob in zip(world.files, world.blobs(way), strict=True):
            assert world.ledger.known(path) is not None
            read = transfer.bring(blob, SILENT).read
            assert read == (0 if way == "link" else blob.size)

    def test_in_the_hubs_cache_are_symbolic_links(self, world: World, way: str) -> None:
        snapshot = world.folder / "snapshot.gguf"
        snapshot.symlink_to(world.files[0])
        blob = replace(world.blobs(way)[0], path=snapshot)
        brought = world.make(way).bring(blob, SILENT)
        assert brought.how == expected(way, world)
        assert not world.store.blob(blob.sha256).is_symlink()

    @pytest.mark.parametrize("change", ["bytes", "truncated", "longer"])
    def test_that_change_meanwhile_are_refused(self, world: World, way: str, change: str) -> None:
        path = padded(world.files[0], world.folder / "large.gguf", 6_000_000)
        blob = blob_of(path)

        def meddle() -> None:
            if change == "truncated":
                os.truncate(path, 5_000_000)
                return
            with path.open("r+b") as file:
                file.seek(0 if change == "bytes" else path.stat().st_size)
                file.write(b"other")

        with pytest.raises(ChecksumMismatch):
            world.make(way).bring(blob, At("", 2_000_000, meddle))
        assert not world.daemon.has_blob(blob.sha256)
        assert not world.daemon.has_blob(sha256(path))
        assert not world.leftovers()
        assert world.ledger.known(path) is None

    def test_that_are_not_there(self, world: World, way: str) -> None:
        blob = Blob(world.folder / "missing.gguf", secrets.token_hex(32), 5)
        with pytest.raises(StoreError, match=r"missing\.gguf` cannot be read"):
            world.make(way).bring(blob, SILENT)

    def test_are_believed_by_no_ledger_that_lies(self, world: World, way: str) -> None:
        """A ledger that has another digest of the file is not asked twice."""
        blob = world.blobs(way)[0]
        assert blob.path is not None
        found = world.ledger.digest(blob.path, SILENT)
        world.ledger.remember("0" * 64, found.identity)
        assert world.make(way).bring(blob, SILENT).how == expected(way, world)


class TestLink:
    def test_hard_links_share_the_inode(self, world: World) -> None:
        if expected("link", world) == "reflink":
            pytest.skip("this file system has reflinks, which are taken first")
        before = world.files[0].stat()
        world.make("link").bring(world.blobs("link")[0], SILENT)
        after = world.store.blob(sha256(world.files[0])).stat()
        assert (after.st_ino, after.st_nlink) == (before.st_ino, 2)
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
        assert after.st_mtime_ns == before.st_mtime_ns

    def test_another_file_system_or_owner_means_a_copy(self, world: World) -> None:
        path = _foreign(world)
        blob = blob_of(path)
        transfer = world.make("link")
        try:
            assert transfer.cost(blob) == Cost(read=blob.size, written=blob.size)
            how = transfer.bring(blob, SILENT).how
        finally:
            path.unlink()
        assert how == "copy" or expected("link", world) == how == "reflink"
        state, folder = world.store.blob(blob.sha256).stat(), world.store.blobs_folder.stat()
        assert (state.st_uid, state.st_gid) == (folder.st_uid, folder.st_gid)
        assert state.st_mode & 0o777 == 0o644

    def test_killed_while_it_copies(self, world: World) -> None:
        large = padded(world.files[0], world.folder / "large.gguf", 12_000_000)
        world.files = (large, world.files[1])
        path = _foreign(world)
        try:
            _killed(replace(world, files=(path, world.files[1])), "link")
            assert not world.daemon.has_blob(sha256(path))
            assert len(world.leftovers()) == 1
            world.make("link").bring(blob_of(path), SILENT)
        finally:
            path.unlink()
        assert not world.leftovers()
        assert world.daemon.has_blob(sha256(large))

    def test_a_copy_of_wrong_bytes_is_none(self, world: World) -> None:
        path = _foreign(world)
        blob = replace(blob_of(path), sha256="0" * 64)
        try:
            with pytest.raises(ChecksumMismatch):
                world.make("link").bring(blob, SILENT)
        finally:
            path.unlink()
        assert not world.leftovers()
        assert not world.store.blob("0" * 64).exists()

    def test_a_copy_that_does_not_fit_is_none(self, world: World) -> None:
        path = _foreign(world)
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from llava_ollama.daemon import Daemon\n"
            "from llava_ollama.ledger import Ledger\n"
            "from llava_ollama.progress import SILENT\n"
            "from llava_ollama.store import Store\n"
            "from llava_ollama.transfer import Blob, Link\n"
            "host, models, ledger, file, digest, size = sys.argv[1:]\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
            "link = Link(Daemon(host), Store(Path(models)), Ledger(Path(ledger)))\n"
            "try:\n"
            "    link.bring(Blob(Path(file), digest, int(size)), SILENT)\n"
            "except Exception as exc:\n"
            "    print(type(exc).__name__, exc.message)\n"
        )
        blob = blob_of(path)
        arguments = [world.daemon.host, world.store.folder, world.folder / "l", path]
        arguments += [blob.sha256, blob.size]
        command = [sys.executable, "-c", code, *map(str, arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            path.unlink()
        assert done.stdout.startswith("NotEnoughSpace no space is left")
        assert not world.leftovers()
        assert not world.daemon.has_blob(blob.sha256)

    def test_a_link_that_was_pruned_is_made_again(self, world: World) -> None:
        transfer, blobs = world.make("link"), world.blobs("link")
        for blob in blobs:
            transfer.bring(blob, SILENT)
        name = f"pruned-{world.token}"
        world.create(name)
        world.store.blob(blobs[0].sha256).unlink()
        transfer.settle(blobs, SILENT, registered=True)
        with Llava(name, host=world.daemon.host) as llava:
            check(llava)

    def test_a_link_that_another_models_removal_takes_is_made_again(self, world: World) -> None:
        blob = world.blobs("link")[0]
        place = world.store.blob(blob.sha256)
        removed: list[str] = []

        class Removing(Daemon):
            def has_blob(self, digest: str) -> bool:
                if place.exists() and not removed:
                    place.unlink()
                    removed.append(digest)
                return super().has_blob(digest)

        daemon = Removing(world.daemon.host)
        brought = Link(daemon, world.store, world.ledger).bring(blob, SILENT)
        daemon.close()
        assert removed
        assert brought.how in {"hard link", "reflink"}
        assert world.daemon.has_blob(blob.sha256)

    def test_another_daemons_folder_stays_as_it_is(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "other" / "blobs").mkdir(parents=True)
        other = Store(tmp_path / "other")
        blob = world.blobs("link")[0]
        transfer = Link(world.daemon, other, world.ledger)
        with pytest.raises(StoreError, match="does not appear"):
            transfer.bring(blob, SILENT)
        assert not list(other.blobs())
        other.blob(blob.sha256).write_bytes(b"theirs")
        with pytest.raises(StoreError, match="does not appear"):
            transfer.bring(blob, SILENT)
        assert other.blob(blob.sha256).read_bytes() == b"theirs"

    def test_without_a_store(self, world: World) -> None:
        transfer = Link(world.daemon, NoStore("it is elsewhere", "go there"), world.ledger)
        assert transfer.why_not(world.blobs("link")[0]) == "it is elsewhere"
        with pytest.raises(StoreError, match="it is elsewhere"):
            transfer.bring(world.blobs("link")[0], SILENT)


def _foreign(world: World) -> Path:
    """Return a copy of the model that cannot be hard-linked into the store."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shared.stat().st_dev != world.store.device:
        path = shared / f"llava-ollama-{world.token}.gguf"
        path.write_bytes(world.files[0].read_bytes())
        return path
    if os.geteuid() != 0:
        pytest.skip("there is no second file system here, and no second user")
    path = world.folder / "foreign.gguf"
    path.write_bytes(world.files[0].read_bytes())
    os.chown(path, 65534, 65534)
    return path


class TestPull:
    def test_asks_for_the_manifest_only_before_it_is_chosen(self, world: World) -> None:
        assert world.make("pull").why_not(world.blobs("pull")[0]) is None
        assert [path for _, path in world.registry.requests] == [
            f"/v2/library/x{world.token}/manifests/f16"
        ]

    def test_a_library_that_has_moved_on(self, world: World) -> None:
        world.registry.publish(world.tag, world.files[0], resources.bundled(SOURCES[1]))
        reason = world.make("pull").why_not(world.blobs("pull")[0])
        assert reason is not None
        assert "other files" in reason
        assert world.registry.blobs_asked_for() == 0

    def test_a_library_that_moves_on_between_plan_and_pull(self, world: World) -> None:
        transfer = world.make("pull")
        assert transfer.why_not(world.blobs("pull")[0]) is None
        world.registry.publish(world.tag, *map(resources.bundled, SOURCES))
        with pytest.raises(DaemonError, match="came without"):
            transfer.bring(world.blobs("pull")[0], SILENT)
        transfer.settle(world.blobs("pull"), SILENT, registered=False)
        assert world.pulled not in world.names()
        assert not list(world.records.all("pulled"))

    def test_the_users_own_name_stays(self, world: World) -> None:
        for _ in world.daemon.pull(world.pulled, insecure=True):
            pass
        assert world.pulled in world.names()
        world.store.blob(sha256(world.files[1])).unlink()
        world.install("pull", f"own-{world.token}")
        assert world.pulled in world.names()

    def test_the_users_own_name_in_another_version(self, world: World) -> None:
        for _ in world.daemon.pull(world.pulled, insecure=True):
            pass
        other = rewrite(world.files[0], world.folder / "new.gguf", {"general.name": "new"})
        world.files = (other, world.files[1])
        world.registry.publish(world.tag, *world.files)
        reason = world.make("pull").why_not(world.blobs("pull")[0])
        assert reason is not None
        assert "another version" in reason

    def test_why_not(self, world: World) -> None:
        blob, here = world.blobs("pull")[0], world.blobs("link")[0]
        wanted = frozenset(map(sha256, world.files))
        url = world.registry.url

        def reason(tag: str | None = world.tag, registry: str = url, note: str = "") -> str | None:
            made = Pull(
                world.daemon, world.records, tag, wanted, registry=registry, not_now=note or None
            )
            return made.why_not(blob)

        assert reason() is None
        assert "no public tag" in str(reason(tag=None))
        assert "mirror" in str(reason(note="a Hub mirror is set"))
        assert "does not tell" in str(reason(registry="http://127.0.0.1:9"))
        assert "does not tell" in str(reason(tag="missing:tag"))
        assert "already" in str(world.make("pull").why_not(here))
        assert "not known to have" in str(world.make("pull").why_not(Blob(None, "0" * 64, 1)))

    def test_given_up_leaves_neither_name_nor_blobs(self, world: World) -> None:
        transfer = world.make("pull")
        blob = world.blobs("pull")[0]
        transfer.bring(blob, SILENT)
        transfer.settle([blob], SILENT, registered=False)
        assert world.pulled not in world.names()
        assert not world.daemon.has_blob(blob.sha256)


class TestChoose:
    def test_links_what_is_on_this_machine(self, world: World) -> None:
        choice = choose([world.make(way) for way in WAYS], world.blobs("link")[0])
        assert choice.transfer.name == "link"
        assert dict(choice.passed_over).keys() == {"upload", "pull"}
        assert "writes" in dict(choice.passed_over)["upload"]
        assert "already" in dict(choice.passed_over)["pull"]

    def test_uploads_where_there_is_no_store(self, world: World) -> None:
        link = Link(world.daemon, NoStore("it is elsewhere", "go there"), world.ledger)
        choice = choose([link, world.make("upload")], world.blobs("link")[0])
        assert choice.transfer.name == "upload"
        assert choice.passed_over == (("link", "it is elsewhere"),)

    def test_pulls_what_is_nowhere_and_cannot_be_linked(self, world: World) -> None:
        choice = choose([world.make("upload"), world.make("pull")], world.blobs("pull")[0])
        assert choice.transfer.name == "pull"
        assert choice.cost == Cost(written=choice.cost.written, fetched=choice.cost.written)

    def test_the_first_of_those_that_cost_the_same(self, world: World) -> None:
        blob = world.blobs("pull")[0]
        for order in (("pull", "link"), ("link", "pull")):
            choice = choose([world.make(way) for way in order], blob)
            assert choice.transfer.name == order[0]

    def test_none_is_possible(self, world: World) -> None:
        with pytest.raises(StoreError, match="already"):
            choose([world.make("pull")], world.blobs("link")[0])


def test_the_store_is_found_and_the_daemon_is_the_one(world: World) -> None:
    world.install("upload", f"seen-{world.token}")
    assert store.find(world.daemon, []) == world.store
