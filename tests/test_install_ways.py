"""Install by each way: which one is taken, what it costs, and what is there afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llava_ollama import Llava, catalog, resources, swap, ways
from llava_ollama.daemon import Daemon
from llava_ollama.errors import LlavaOllamaError, StoreError
from llava_ollama.install import Installer, InstallResult, Wanted, from_catalog, from_files
from llava_ollama.ledger import Ledger
from llava_ollama.records import Records
from llava_ollama.tiny import shapes
from llava_ollama.transfer import Name
from llava_ollama.ways import Ways
from llava_ollama.weights import Weights
from tests.conftest import DAEMONS, start
from tests.daemons.running import RunningDaemon
from tests.drawn import one_shape_pictures
from tests.hub import LoopbackHub
from tests.installing import Listening
from tests.proxy import Fault, Proxy
from tests.registry import LoopbackRegistry
from tests.store import Store
from tests.test_wording import AS_ANYONE

pytestmark = pytest.mark.ollama
MODEL = resources.bundled("tiny-llava-int4.gguf")
PROJECTOR = resources.bundled("tiny-llava-mmproj-f16.gguf")
TAG = "tiny:int4"
REPO = "somebody/tiny"
PICTURES = 20
"""For each way. 0.24.0 runs every picture encoder on four threads that spin where they wait: on two
cores 0.7 s a picture, on one 1.7 s, and no option of it changes that."""
HEAVY = {"huggingface_hub", "ollama", "PIL", "tenacity", "pydantic", "httpx2"}
"""Not rich and jinja2: httpx imports the one, and the plan renders its Modelfile by the other."""


@dataclass
class Here:
    """A daemon without models, copies of the tiny pair beside it, and a user's folders."""

    running: RunningDaemon
    daemon: Daemon
    registry: LoopbackRegistry
    hub: LoopbackHub
    folder: Path
    reporter: Listening = field(default_factory=Listening)

    @property
    def store(self) -> Store:
        return Store(self.running.models)

    @property
    def files(self) -> tuple[Path, Path]:
        return self.folder / "files" / MODEL.name, self.folder / "files" / PROJECTOR.name

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder / "home"),
            "PATH": os.environ["PATH"],
            "OLLAMA_HOST": self.daemon.host,
            "OLLAMA_MODELS": str(self.running.models),
            "LLAVA_OLLAMA_REGISTRY": self.registry.url,
            "LLAVA_OLLAMA_CACHE": str(self.folder),
            "LLAVA_OLLAMA_STATE": str(self.folder / "state"),
        }

    def wanted(self, name: str = "mine", *, on_disk: bool = True) -> Wanted:
        """Return the tiny pair: the copies beside, or what only the Hub and the registry have."""
        wanted = from_catalog(catalog.load(), "tiny-llava", "int4", to=name)
        pair = (wanted.model, wanted.projector)
        if on_disk:
            files = [replace(f, path=path) for f, path in zip(pair, self.files, strict=True)]
        else:
            files = [replace(f, path=None, repo=REPO, library=TAG, size=s.stat().st_size)
                     for f, s in zip(pair, (MODEL, PROJECTOR), strict=True)]  # fmt: skip
        parameters = {**wanted.parameters, "num_thread": 1}
        return replace(wanted, model=files[0], projector=files[1], parameters=parameters)

    def installer(
        self, only: Name | None = None, *, rehash: bool = False, **changes: Any
    ) -> Installer:
        ledger = Ledger(self.folder / "ledger.sqlite3", rehash=rehash)
        records = Records(self.folder / "state")
        weights = Weights(
            downloads=self.folder / "downloads",
            hub_cache=self.folder / "hub",
            endpoint=self.hub.url,
            ledger=ledger,
            reporter=self.reporter,
            wait=0.01,
        )
        settings = {"folders": (self.running.models,), "registry": self.registry.url} | changes
        ways = Ways(daemon=self.daemon, records=records, ledger=ledger, only=only, **settings)
        return Installer(self.daemon, weights, records, ways=ways, reporter=self.reporter)

    def install(self, wanted: Wanted, only: Name | None = None, **changes: Any) -> InstallResult:
        installer = self.installer(only, **changes)
        return installer.apply(installer.plan(wanted))

    def blob(self, path: Path) -> Path:
        return self.store.folder / "blobs" / f"sha256-{sha256(path)}"

    def command(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Run the program on the two copies, or with other `arguments`."""
        given = ["--model-file", str(self.files[0]), "--mmproj-file", str(self.files[1])]
        return subprocess.Popen(
            [sys.executable, "-m", "llava_ollama", "install", *(arguments or given),
             "--name", "mine", "--parameter", "num_thread=1"],
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def said(self, *arguments: str) -> str:
        with self.command(*arguments) as process:
            out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert not errors
        return out

    def is_whole(self) -> None:
        """See that the name has the pinned bytes, and that nothing else is left."""
        for manifest in self.store.manifests().values():
            for layer in manifest["layers"]:
                path = self.store.folder / "blobs" / layer["digest"].replace(":", "-")
                assert f"sha256:{sha256(path)}" == layer["digest"]
        weights = {x["digest"] for x in self.store.manifests()["mine"]["layers"]
                   if x["mediaType"].endswith((".model", ".projector"))}  # fmt: skip
        assert weights == {f"sha256:{sha256(path)}" for path in (MODEL, PROJECTOR)}
        assert list(self.store.manifests()) == ["mine"]
        assert self.store.orphans() == {}
        records = Records(self.folder / "state")
        kinds = ("pending", "probe", "pulled", "transient")
        assert not [r for kind in kinds for r in records.all(kind)]  # type: ignore[arg-type]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=DAEMONS)
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    running = start(str(request.param), tmp_path_factory.mktemp("ways"))
    yield running
    running.stop()


@pytest.fixture
def here(machine: RunningDaemon, tmp_path: Path) -> Iterator[Here]:
    with at(machine, tmp_path) as here:
        yield here


@contextmanager
def at(machine: RunningDaemon, tmp_path: Path) -> Iterator[Here]:
    daemon = Daemon(machine.host)
    with LoopbackRegistry() as registry, LoopbackHub() as hub:
        registry.publish(TAG, MODEL, PROJECTOR)
        for path in (MODEL, PROJECTOR):
            hub.publish(path, REPO)
        here = Here(machine, daemon, registry, hub, tmp_path / "us")
        here.files[0].parent.mkdir(parents=True)
        for source, copy in zip((MODEL, PROJECTOR), here.files, strict=True):
            shutil.copy(source, copy)
        yield here
    for model in daemon.models():
        swap.remove(daemon, model.name)
    here.store.forget_orphans()
    daemon.close()


@pytest.mark.parametrize("way", ["link", "upload", "pull"])
def test_each_way_gives_the_pinned_bytes_and_right_answers(here: Here, way: Name) -> None:
    result = here.install(here.wanted(on_disk=way != "pull"), way)
    how = {"hard link", "reflink"} if way == "link" else {way}
    assert {part.transfer for part in result.parts} <= how
    written = [0, 0] if way == "link" else [path.stat().st_size for path in here.files]
    assert [part.bytes_written for part in result.parts] == written
    here.is_whole()
    seed = ["link", "upload", "pull"].index(way)
    wrong = []
    with Llava("mine", host=here.daemon.host) as llava:
        for picture, shape in one_shape_pictures(PICTURES, seed):
            answer = llava.ask(picture, "Describe this image", options={"temperature": 0})
            if not shapes.names(shape, answer.text):
                wrong.append((shape, answer.text))
    assert wrong == []
    # Else the next way's bytes, under the same blob names, would be answered for by these.
    here.daemon.unload("mine")
    assert not here.install(here.wanted(), way).changed


def test_an_empty_daemon_and_one_with_models(here: Here) -> None:
    installer = here.installer()
    plan = installer.plan(here.wanted())
    assert plan.unproven == here.running.models
    assert [part.transfer for part in plan.parts] == ["link", "link"]
    assert not here.store.blobs().keys() & {here.blob(path).name for path in here.files}
    assert {part.transfer for part in installer.apply(plan).parts} == {"hard link"}
    assert [here.blob(path).stat().st_nlink for path in here.files] == [2, 2]
    here.is_whole()
    # With a model in it the daemon itself says where its folder is.
    other = from_catalog(catalog.load(), "tiny-llava", "f16", to="other")
    copy = here.folder / "f16.gguf"
    shutil.copy(resources.bundled("tiny-llava-f16.gguf"), copy)
    plan = here.installer(folders=()).plan(replace(other, model=replace(other.model, path=copy)))
    assert (plan.unproven, plan.parts[0].transfer) == (None, "link")
    assert [part.origin for part in plan.parts] == ["given", "daemon"]
    assert here.reporter.notes == []


def test_another_daemons_folder_stays_as_it_is(here: Here, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "blobs").mkdir(parents=True)
    result = here.install(here.wanted(), folders=(other,))
    assert {part.transfer for part in result.parts} == {"upload"}
    assert len(here.reporter.notes) == 1
    assert "is not one of those known here" in here.reporter.notes[0]
    assert "So each byte is read here and written there" in here.reporter.notes[0]
    assert not list((other / "blobs").iterdir())
    here.is_whole()


@pytest.mark.parametrize("empty", [True, False])
def test_a_store_that_cannot_be_written(here: Here, *, empty: bool) -> None:
    if not empty:
        other = from_catalog(catalog.load(), "tiny-llava", "f16", to="other")
        here.install(other, "upload")
    blobs = here.store.folder / "blobs"
    command = [sys.executable, "-c", AS_ANYONE, "install", "--name", "mine", "--json"]
    command += ["--model-file", str(here.files[0]), "--mmproj-file", str(here.files[1])]
    mode = blobs.stat().st_mode
    blobs.chmod(0o500)
    try:
        plan, done = (
            subprocess.run(
                command + more, env=here.environment, capture_output=True, text=True, check=False
            )
            for more in (["--dry-run"], [])
        )
    finally:
        blobs.chmod(mode)
    assert (plan.returncode, plan.stderr) == (0, "")
    part = json.loads(plan.stdout)["parts"][0]
    assert part["transfer"] == "upload"
    assert dict(part["passed_over"])["link"]
    # The daemon is asked to write; where it is of the same user, it cannot either.
    if done.returncode == 0:
        assert json.loads(done.stdout)["parts"][0]["transfer"] == "upload"
        assert "`sudo -E`" in done.stderr
        assert "is read-only. So each byte is read here and written there" in done.stderr


def test_a_way_that_the_user_names_is_not_left(here: Here, tmp_path: Path) -> None:
    before = here.store.blobs()
    with pytest.raises(StoreError, match="is not open"):
        here.install(here.wanted(), "link", folders=())
    (tmp_path / "other" / "blobs").mkdir(parents=True)
    with pytest.raises(StoreError, match="is not open"):
        here.install(here.wanted(), "link", folders=(tmp_path / "other",))
    with pytest.raises(StoreError, match="is not open"):
        here.install(replace(here.wanted(), model=replace(here.wanted().model, library="no:x")),
                     "pull")  # fmt: skip
    assert here.store.blobs() == before
    assert here.hub.served == 0


def test_another_file_system_means_a_copy(here: Here, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    copy = memory / f"llava-ollama-{os.getpid()}.gguf"
    shutil.copy(MODEL, copy)
    wanted = here.wanted()
    try:
        wanted = replace(wanted, model=replace(wanted.model, path=copy))
        plan = here.installer().plan(wanted)
        assert plan.parts[0].cost.written == MODEL.stat().st_size
        result = here.install(wanted)
    finally:
        copy.unlink()
    assert [part.transfer for part in result.parts] == ["copy", "hard link"]
    assert [part.bytes_written for part in result.parts] == [MODEL.stat().st_size, 0]
    here.is_whole()


def test_pull_is_for_what_is_nowhere_here(here: Here) -> None:
    plan = here.installer().plan(here.wanted(on_disk=False))
    assert [part.transfer for part in plan.parts] == ["pull", "pull"]
    assert [part.origin for part in plan.parts] == ["registry", "registry"]
    assert here.registry.blobs_asked_for() == 0
    reasons = {
        "mirror": here.installer(no_pull="`HF_ENDPOINT` names a mirror"),
        "does not tell": here.installer(registry="http://127.0.0.1:9"),
    }
    for reason, installer in reasons.items():
        part = installer.plan(here.wanted(on_disk=False)).parts[0]
        assert part.transfer == "link"
        assert reason in dict(part.passed_over)["pull"]
    mixed = replace(here.wanted(on_disk=False), projector=here.wanted().projector)
    asked = len(here.registry.requests)
    part = here.installer().plan(mixed).parts[0]
    assert "on this machine already" in dict(part.passed_over)["pull"]
    assert len(here.registry.requests) == asked


def test_a_library_that_has_moved_on_falls_back_to_the_hub(here: Here) -> None:
    here.registry.publish(TAG, resources.bundled("tiny-llava-f16.gguf"), PROJECTOR)
    plan = here.installer().plan(here.wanted(on_disk=False))
    assert "other files" in dict(plan.parts[0].passed_over)["pull"]
    here.registry.publish(TAG, MODEL, PROJECTOR)
    # And one that cannot deliver what its manifest says.
    here.registry.blobs.clear()
    result = here.install(here.wanted(on_disk=False))
    assert {part.transfer for part in result.parts} == {"hard link"}
    assert any("going on by another way" in note for note in here.reporter.notes)
    here.is_whole()


class TakingAway(Ways):
    """Plays somebody who removes a model with the same file between its pull and `create`."""

    taken = False

    def close(self, way: Name) -> None:
        super().close(way)
        if not self.taken:
            self.taken = True
            (self.folders[0] / "blobs" / f"sha256-{sha256(MODEL)}").unlink()


def test_what_was_pulled_and_is_taken_away_is_pulled_again(here: Here) -> None:
    records = Records(here.folder / "state")
    ways = TakingAway(
        daemon=here.daemon,
        records=records,
        ledger=Ledger(here.folder / "ledger.sqlite3"),
        only="pull",
        folders=(here.running.models,),
        registry=here.registry.url,
    )
    weights = Weights(downloads=here.folder / "downloads", endpoint=here.hub.url)
    installer = Installer(here.daemon, weights, records, ways=ways, reporter=here.reporter)
    result = installer.apply(installer.plan(here.wanted(on_disk=False)))
    assert result.parts[0].transfer == "pull"
    here.is_whole()


def test_downloads_are_kept_where_the_daemon_shares_their_bytes(here: Here) -> None:
    def kept() -> list[int]:
        found = (here.folder / "downloads").rglob("*.gguf")
        return [path.stat().st_nlink for path in found]

    wanted = here.wanted(on_disk=False)
    result = here.install(wanted, no_pull="a test says so")
    assert {part.transfer for part in result.parts} == {"hard link"}
    assert kept() == [2, 2]
    # Hashed while they came, so not read again.
    assert [task for task in here.reporter.tasks if not task.startswith("download")] == []
    here.is_whole()
    swap.remove(here.daemon, "mine")
    shutil.rmtree(here.folder / "downloads")
    here.install(wanted, "upload")
    assert kept() == []
    here.is_whole()


def test_files_without_a_pin_are_read_once(here: Here) -> None:
    wanted = from_files(*map(str, here.files), name="mine")
    here.install(wanted)
    assert len(here.reporter.tasks) == 2
    for again in (wanted, replace(wanted, name="twice")):
        swap.remove(here.daemon, "mine")
        here.install(again)
    assert len(here.reporter.tasks) == 2
    here.install(wanted, rehash=True)
    assert len(here.reporter.tasks) == 4
    data = bytearray(here.files[0].read_bytes())
    data[-1] ^= 1
    here.files[0].unlink()
    here.files[0].write_bytes(data)
    plan = here.installer().plan(wanted)
    assert plan.parts[0].digest == sha256(here.files[0])


def test_killed_before_between_and_after_link_and_create(here: Here) -> None:
    with Proxy(here.daemon.host) as proxy:
        env = {"OLLAMA_HOST": proxy.url}
        with here.command(**env) as process:
            assert process.communicate(timeout=60)[0].startswith("Installed mine")
        steps = list(proxy.requests)
        create = steps.index("POST /api/create")
        first = next(n for n, step in enumerate(steps) if step.startswith("HEAD /api/blobs"))
        for number in (first, create - 2, create - 1, create, create + 1):
            for fault in (Fault(hold=True), Fault(withhold=True)):
                swap.remove(here.daemon, "mine")
                proxy.reset({number: fault})
                with here.command(**env) as process:
                    assert proxy.held.acquire(timeout=60), process.communicate()
                    process.kill()
                    process.communicate()
                assert process.returncode == -signal.SIGKILL
                proxy.reset()
                with here.command(**env) as process:
                    out, errors = process.communicate(timeout=60)
                assert process.returncode == 0, (number, steps[number], errors)
                assert out.startswith("Installed mine")
                here.is_whole()
    assert [sha256(path) for path in here.files] == [sha256(MODEL), sha256(PROJECTOR)]


def test_two_at_once(here: Here) -> None:
    processes = [here.command() for _ in range(2)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first = sorted(out.splitlines()[0][:14] for out, _ in said)
    assert first == ["Installed mine", "mine is instal"]
    here.is_whole()
    assert [here.blob(path).stat().st_nlink for path in here.files] == [2, 2]


def test_linked_names_that_share_blobs_come_and_go_together(here: Here) -> None:
    failures: list[BaseException] = []
    records = Records(here.folder / "state")

    def run(name: str) -> None:
        client = Daemon(here.daemon.host)
        mine = replace(here, daemon=client)
        try:
            for _ in range(6):
                mine.install(here.wanted(name))
                assert client.show(name).has_vision
                swap.remove(client, name, records)
        except (LlavaOllamaError, AssertionError) as exc:
            failures.append(exc)
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not here.store.manifests()
    assert [path.stat().st_nlink for path in here.files] == [1, 1]
    assert [sha256(path) for path in here.files] == [sha256(MODEL), sha256(PROJECTOR)]


def test_a_dry_run_says_what_each_way_costs(here: Here) -> None:
    before = here.store.blobs()
    files = ("--model-file", str(here.files[0]), "--mmproj-file", str(here.files[1]))
    said = here.said(*files, "--dry-run")
    line = said.splitlines()[3].split()
    assert line[:2] == ["model", MODEL.name]
    assert line[4:] == ["given", "link?", "-", "-", "-"]  # hashed for the plan already
    assert "not by upload: writes" in said
    assert "not by pull: no public tag is known to have this file" in said
    assert f"whether `{here.running.models}` is the daemon's models folder" in said
    plan = json.loads(here.said(*files, "--dry-run", "--json"))
    assert [part["transfer"] for part in plan["parts"]] == ["link", "link"]
    assert plan["parts"][0]["cost"] == {"read": 0, "written": 0, "fetched": 0}
    assert dict(plan["parts"][0]["passed_over"]).keys() == {"upload", "pull"}
    assert here.store.blobs() == before
    assert not list(here.folder.rglob("probe/*.json"))
    done = here.said(*files)
    assert " s: hard link, nothing written\n" in done


@pytest.mark.parametrize("again", [True, False])
def test_what_is_known_needs_no_heavy_library(here: Here, *, again: bool) -> None:
    """Neither a second install nor a link of a file with a known digest."""
    here.install(here.wanted())
    toml = here.folder / "own.toml"
    names = {"model": here.files[0], "projector": here.files[1]}
    text = {key: f'{{ file = "{path}", sha256 = "{sha256(path)}" }}' for key, path in names.items()}
    toml.write_text(
        "[models.known]\nparameters = { num_thread = 1 }\n"
        f"projector = {text['projector']}\nquants.int4 = {text['model']}\n"
    )
    if not again:
        swap.remove(here.daemon, "mine")
    code = (
        "import json, sys\nfrom llava_ollama.cli import main\n"
        "try: main(['install', 'known', '--name', 'mine'], prog_name='llava-ollama')\n"
        "except SystemExit as exc: assert exc.code == 0, exc.code\n"
        "sys.stdout.write('\\n' + json.dumps(sorted(sys.modules)))"
    )
    env = here.environment | {"LLAVA_OLLAMA_CATALOG": str(toml)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    unwanted = HEAVY | {"sqlite3"} if again else HEAVY
    assert ("is installed already" if again else "hard link, nothing written") in done.stdout
    assert not loaded & unwanted


@pytest.mark.parametrize("way", ["link", "pull"])
def test_one_broken_request(here: Here, way: Name) -> None:
    """Uploads are broken in test_install_faults.py."""
    kinds = [
        Fault(status=500, body=b'{"error":"unlucky"}'),
        Fault(refuse=True),
        Fault(cut=0),
        Fault(garbage=True),
    ]
    records = Records(here.folder / "state")
    with Proxy(here.daemon.host) as proxy:
        client = Daemon(proxy.url)
        broken = replace(here, daemon=client)
        wanted = here.wanted(on_disk=way != "pull")
        broken.install(wanted)
        steps = list(proxy.requests)
        assert ("POST /api/pull" in steps) == (way == "pull")
        for number, step in enumerate(steps):
            # By a pull only what a link does not ask: 0.24.0 takes 1 s for each blob.
            if way == "pull" and not step.startswith(("POST /api/pull", "DELETE", "GET")):
                continue
            swap.remove(here.daemon, "mine")
            proxy.reset({number: kinds[number % len(kinds)]})
            with suppress(LlavaOllamaError):
                broken.install(wanted)
            proxy.reset()
            ways.recover(client, records)
            swap.recover(client, records)
            assert list(here.store.manifests()) in ([], ["mine"]), (number, step)
            broken.install(wanted)
            here.is_whole()
        client.close()
    if way == "link":
        assert [sha256(path) for path in here.files] == [sha256(MODEL), sha256(PROJECTOR)]


def test_a_link_to_a_daemon_that_rewrites(tmp_path: Path) -> None:
    running = start("0.34.0", tmp_path / "daemon")
    try:
        with at(running, tmp_path) as here:
            result = here.install(here.wanted())
            assert {part.transfer for part in result.parts} == {"hard link"}
            assert any(part.source_digest != part.stored_digest for part in result.parts)
            assert any("rewrites" in note for note in here.reporter.notes)
            assert [sha256(path) for path in here.files] == [sha256(MODEL), sha256(PROJECTOR)]
            assert not here.install(here.wanted()).changed
    finally:
        running.stop()
