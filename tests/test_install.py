"""Install on real daemons: what is planned, what arrives there, and what is refused before."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import pytest

from llava_ollama import catalog, modelfile, resources, swap
from llava_ollama.catalog import WeightFile
from llava_ollama.daemon import Daemon
from llava_ollama.errors import (
    ChecksumMismatch,
    DaemonError,
    DaemonUnreachable,
    DownloadError,
    GGUFError,
    ModelConflict,
    TemplateError,
    UsageProblem,
)
from llava_ollama.install import Installer, InstallResult, Wanted, from_catalog, from_files
from llava_ollama.modelfile import read_template
from llava_ollama.preflight import remarks
from llava_ollama.records import Records
from llava_ollama.weights import Weights
from tests import published
from tests.conftest import DAEMONS, start
from tests.daemons.running import RunningDaemon
from tests.hub import LoopbackHub
from tests.installing import Listening
from tests.store import Store

REPO = "somebody/tiny-llava"
PROMPT_ONLY = "{{ .Prompt }}\n"
MODEL = resources.bundled("tiny-llava-int4.gguf")
PROJECTOR = resources.bundled("tiny-llava-mmproj-f16.gguf")


@dataclass
class Here:
    """A daemon with nothing in it, and an installer on this machine."""

    running: RunningDaemon
    daemon: Daemon
    folder: Path
    endpoint: str | None = None
    reporter: Listening = field(default_factory=Listening)

    @property
    def store(self) -> Store:
        return Store(self.running.models)

    @property
    def records(self) -> Records:
        return Records(self.folder / "state")

    @property
    def weights(self) -> Weights:
        return Weights(
            downloads=self.folder / "downloads",
            hub_cache=self.folder / "hub",
            endpoint=self.endpoint,
            reporter=self.reporter,
            wait=0.01,
        )

    @property
    def installer(self) -> Installer:
        return Installer(self.daemon, self.weights, self.records, reporter=self.reporter)

    def install(
        self, wanted: Wanted, *, force: bool = False, keep_files: bool = False
    ) -> InstallResult:
        install = self.installer
        return install.apply(install.plan(wanted), force=force, keep_files=keep_files)

    def files(self) -> dict[str, tuple[int, int]]:
        """Return size and time of all there is, at the daemon and with us."""
        paths = [*self.store.folder.rglob("*"), *self.folder.rglob("*")]
        found = {path: path.stat() for path in paths if path.is_file()}
        return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.fixture(scope="module", params=DAEMONS)
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    running = start(str(request.param), tmp_path_factory.mktemp("install"))
    yield running
    running.stop()


@pytest.fixture
def here(machine: RunningDaemon, tmp_path: Path) -> Iterator[Here]:
    daemon = Daemon(machine.host)
    here = Here(machine, daemon, tmp_path / "us")
    yield here
    for model in daemon.models():
        swap.remove(daemon, model.name)
    here.store.forget_orphans()
    daemon.close()


def tiny(quant: str | None = "int4", name: str | None = None) -> Wanted:
    return from_catalog(catalog.load(), "tiny-llava", quant, to=name)


def own(model: Path = MODEL, projector: Path = PROJECTOR, name: str = "mine") -> Wanted:
    return from_files(str(model), str(projector), name=name)


@functools.cache
def _foreign(folder: Path) -> Path:
    """Return a model whose vocabulary has no `<|eot_id|>`."""
    tokens = [
        token.replace("<|eot_id|>", "<|other|>")
        for token in gguf.GGUFReader(MODEL).fields["tokenizer.ggml.tokens"].contents()
    ]
    return published.rewrite(MODEL, folder / "foreign.gguf", {"tokenizer.ggml.tokens": tokens})


@pytest.fixture
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _foreign(tmp_path_factory.getbasetemp())


@pytest.mark.ollama
@pytest.mark.parametrize("quant", ["f16", "int4"])
def test_what_arrives(here: Here, quant: str) -> None:
    wanted = tiny(quant)
    result = here.install(wanted)
    assert (result.name, result.changed) == (f"tiny-llava-{quant}", True)
    shown = here.daemon.show(result.name)
    pins = (wanted.model.sha256, wanted.projector.sha256)
    assert shown.sources == pins
    assert tuple(part.stored_digest for part in result.parts) == pins
    assert shown.has_vision
    assert shown.template == modelfile.chat_template()
    assert shown.parameters == wanted.words().parameters
    assert swap.PREFIX not in str(shown.details)
    assert list(here.store.manifests()) == [result.name]
    assert swap.PREFIX not in str(here.store.manifests())
    assert here.store.orphans() == {}
    assert not list(here.records.all("pending"))
    package = shown.package()
    assert package is not None
    assert package.digest() == result.package_digest


@pytest.mark.ollama
def test_the_second_install_sends_and_reads_nothing(here: Here, tmp_path: Path) -> None:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(MODEL.read_bytes())
    wanted = replace(tiny(), model=replace(tiny().model, path=copy))
    assert sum(part.bytes_written for part in here.install(wanted).parts) > 0
    # The same size and no longer the same bytes: whoever read it would refuse it.
    copy.write_bytes(bytes(MODEL.stat().st_size))
    here.reporter.tasks.clear()
    before = here.files()
    plan = here.installer.plan(wanted)
    assert plan.existing == "equal"
    assert [(part.transfer, part.to_download) for part in plan.parts] == [("there", 0)] * 2
    result = here.installer.apply(plan)
    assert (result.changed, [part.bytes_written for part in result.parts]) == (False, [0, 0])
    assert here.reporter.tasks == []
    changed = {p for p in here.files().items() ^ before.items() if "state/installed" not in p[0]}
    assert not changed


@pytest.mark.ollama
def test_a_plan_only_reads(here: Here) -> None:
    here.install(tiny("f16", "mine"))
    before = here.files()
    for wanted in (tiny(), tiny("int4", "mine"), tiny("f16", "mine"), own()):
        plan = here.installer.plan(wanted)
        assert plan.modelfile == modelfile.render(wanted.words())
    assert here.files() == before


@pytest.mark.ollama
@pytest.mark.parametrize("quant", ["f16", "int4"])
def test_a_dry_run_only_reads(here: Here, quant: str) -> None:
    before = here.files()
    command = ["install", "tiny-llava", "--quant", quant, "--dry-run", "--host", here.daemon.host]
    done = subprocess.run(
        [sys.executable, "-m", "llava_ollama", *command],
        env={"HOME": str(here.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"tiny-llava-{quant}.gguf" in done.stdout
    assert here.files() == before


@pytest.mark.ollama
def test_another_model_is_replaced_by_force_only(here: Here) -> None:
    here.install(tiny("f16", "mine"))
    old = here.daemon.show("mine")
    with pytest.raises(ModelConflict) as caught:
        here.install(tiny("int4", "mine"))
    assert caught.value.exit_code == 1
    assert here.daemon.show("mine") == old
    assert here.install(tiny("int4", "mine"), force=True).changed
    assert here.daemon.show("mine").sources[0] == tiny("int4").model.sha256
    assert list(here.store.manifests()) == ["mine"]
    assert here.store.orphans() == {}
    # Other words around the same files are another model, too, and send nothing.
    polite = replace(tiny("int4", "mine"), system='Be "kind"\nand brief')
    with pytest.raises(ModelConflict):
        here.install(polite)
    result = here.install(polite, force=True)
    assert [part.bytes_written for part in result.parts] == [0, 0]
    assert here.daemon.show("mine").system == polite.system
    assert not here.install(polite).changed


@pytest.mark.ollama
def test_files_of_ones_own_twice(here: Here) -> None:
    first, second = here.install(own()), here.install(own())
    assert (first.changed, second.changed) == (True, False)
    assert first.package_digest == second.package_digest
    assert second.parts[0].source_digest == tiny().model.sha256


@pytest.mark.ollama
def test_a_template_of_ones_own(here: Here, foreign: Path) -> None:
    with pytest.raises(TemplateError, match="eot_id"):
        here.installer.plan(own(foreign))
    wanted = replace(own(foreign), template=PROMPT_ONLY)
    assert here.install(wanted).changed
    assert here.daemon.show("mine").template == PROMPT_ONLY
    assert not here.install(wanted).changed
    # Where the daemon knows the model's own template it would add stops of its own to ours.
    known = replace(own(name="known"), template=PROMPT_ONLY, parameters={"temperature": 0.5})
    assert here.install(known).changed
    assert here.daemon.show("known").parameters == {"temperature": 0.5}
    assert not here.install(known).changed


@pytest.mark.ollama
def test_a_foreign_model_that_only_the_daemon_has(here: Here, foreign: Path) -> None:
    here.install(replace(own(foreign), template=PROMPT_ONLY))
    digest = here.daemon.show("mine").sources[0]
    remote = WeightFile(name="foreign.gguf", repo=REPO, size=foreign.stat().st_size, sha256=digest)
    with pytest.raises(TemplateError, match="foreign"):
        here.install(replace(tiny(name="other"), model=remote))
    assert list(here.store.manifests()) == ["mine"]


@pytest.mark.ollama
def test_a_blob_that_went_away_after_the_plan(here: Here) -> None:
    here.install(tiny(name="first"))
    install = here.installer
    plan = install.plan(tiny(name="second"))
    assert [part.origin for part in plan.parts] == ["daemon", "daemon"]
    swap.remove(here.daemon, "first")
    result = install.apply(plan)
    assert all(part.bytes_written > 0 for part in result.parts)
    assert here.daemon.show("second").has_vision


@pytest.mark.ollama
def test_from_a_repository(here: Here) -> None:
    with LoopbackHub() as hub:
        here.endpoint = hub.url
        for path in (MODEL, PROJECTOR):
            hub.publish(path, REPO)
        wanted = from_files(MODEL.name, PROJECTOR.name, name="mine", repo=REPO)
        downloads = here.folder / "downloads"

        def kept() -> set[str]:
            return {path.name for path in downloads.rglob("*.gguf")}

        plan = here.installer.plan(wanted)
        assert [part.origin for part in plan.parts] == ["hub", "hub"]
        assert [part.to_download for part in plan.parts] == [part.size for part in plan.parts]
        assert here.install(wanted).changed
        assert kept() == set()
        served = hub.served
        assert not here.install(wanted).changed
        assert hub.served == served

        swap.remove(here.daemon, "mine")
        assert here.install(wanted, keep_files=True).changed
        assert kept() == {MODEL.name, PROJECTOR.name}

        # They were here before this install, so they stay.
        swap.remove(here.daemon, "mine")
        served = hub.served
        assert here.install(wanted).changed
        assert (kept(), hub.served) == ({MODEL.name, PROJECTOR.name}, served)
        assert not list(here.records.all("transient"))


@pytest.mark.ollama
def test_downloads_of_an_install_that_failed(here: Here) -> None:
    with LoopbackHub() as hub:
        here.endpoint = hub.url
        pins = [hub.publish(path, REPO) for path in (MODEL, PROJECTOR)]
        wanted = replace(tiny(name="mine"), model=pins[0], projector=pins[1], template="{{ .Pro")
        downloads = here.folder / "downloads"
        with pytest.raises(DaemonError, match="template"):
            here.install(wanted)
        assert len(list(downloads.rglob("*.gguf"))) == 2
        served = hub.served
        assert here.install(replace(wanted, template=PROMPT_ONLY)).changed
        assert hub.served == served
        assert not list(downloads.rglob("*.gguf"))
        assert not list(here.records.all("transient"))


@pytest.mark.ollama
def test_files_that_do_not_fit_are_refused_before_anything_is_sent(
    here: Here, tmp_path: Path
) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(MODEL.read_bytes()[:-1000])
    text = tmp_path / "text.gguf"
    text.write_text("not a GGUF")
    (tmp_path / "empty.gguf").touch()
    wide = published.rewrite(MODEL, tmp_path / "wide.gguf", {"llama.embedding_length": 4096})
    before = here.files()
    bad = [
        (own(PROJECTOR, MODEL), GGUFError, "swapped"),
        (own(MODEL, MODEL), GGUFError, "both models"),
        (own(short), GGUFError, "short.gguf"),
        (own(text), GGUFError, "text.gguf"),
        (own(tmp_path / "empty.gguf"), GGUFError, "empty.gguf"),
        (own(wide), GGUFError, "another model"),
        (own(tmp_path / "none.gguf"), DownloadError, "does not exist"),
        (own(tmp_path), DownloadError, "not a file"),
        (own(name="a b"), UsageProblem, "not a model name"),
        (replace(own(), system='"""'), TemplateError, '"""'),
        (replace(own(), system="Look at [img-0]."), UsageProblem, r"`\[img-0\]`.*for a picture"),
    ]
    for wanted, error, words in bad:
        with pytest.raises(error, match=words):
            here.install(wanted)
    assert here.files() == before


@pytest.mark.ollama
def test_what_engines_miss_in_an_old_pair_is_said_once(here: Here, tmp_path: Path) -> None:
    model = published.published_model(MODEL, tmp_path / "model.gguf")
    projector = published.published_projector(PROJECTOR, tmp_path / "mmproj.gguf")
    wanted = from_files(str(model), str(projector), name="old")
    for changed in (True, False):
        assert here.install(wanted).changed is changed
        said = [note for note in here.reporter.notes if "engines" in note]
        assert said == remarks(here.installer.plan(replace(wanted, name="x")).findings)


def test_a_file_that_changes_between_plan_and_sending(here: Here, tmp_path: Path) -> None:
    copy = tmp_path / "model.gguf"
    for change in (
        copy.unlink,
        lambda: copy.write_bytes(MODEL.read_bytes()[:-1]),
        lambda: copy.write_bytes(MODEL.read_bytes()[:-1] + b"?"),
    ):
        copy.write_bytes(MODEL.read_bytes())
        install = here.installer
        plan = install.plan(own(copy))
        change()
        with pytest.raises((GGUFError, ChecksumMismatch)):
            install.apply(plan)
        assert here.store.manifests() == {}
        assert not list(here.records.all("pending"))


@pytest.mark.ollama
def test_a_daemon_that_rewrites(tmp_path: Path) -> None:
    running = start("0.34.0", tmp_path / "daemon")
    daemon = Daemon(running.host)
    here = Here(running, daemon, tmp_path / "us")
    try:
        first = here.install(tiny())
        assert any("rewrites" in note for note in here.reporter.notes)
        rewritten = [part.source_digest != part.stored_digest for part in first.parts]
        assert any(rewritten)
        assert daemon.show(first.name).sources == tuple(p.stored_digest for p in first.parts)
        second = here.install(tiny())
        assert not second.changed
        assert second.parts == tuple(
            replace(part, transfer="there", bytes_written=0) for part in first.parts
        )
        changed = replace(tiny(), system="Be brief")
        with pytest.raises(ModelConflict):
            here.install(changed)
        assert here.install(changed, force=True).changed
        assert not here.install(changed).changed
        assert list(here.store.manifests()) == [first.name]
    finally:
        daemon.close()
        running.stop()


def test_default_names_are_the_cards() -> None:
    known = catalog.load()
    assert from_catalog(known, "llava-llama3", None).name == "llava-llama3-int4"
    assert from_catalog(known, "llava-llama3", "f16").name == "llava-llama3-f16"


@pytest.mark.parametrize(
    ("model", "projector", "name"), [(None, "b", "n"), ("a", None, "n"), ("a", "b", None)]
)
def test_files_of_ones_own_need_both_and_a_name(
    model: str | None, projector: str | None, name: str | None
) -> None:
    with pytest.raises(UsageProblem):
        from_files(model, projector, name=name)


def test_templates_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{{")
    for name in ("empty", "bytes", "none", "."):
        with pytest.raises(TemplateError):
            read_template(tmp_path / name)
    (tmp_path / "good").write_text(PROMPT_ONLY)
    assert read_template(tmp_path / "good") == PROMPT_ONLY


def test_no_daemon(tmp_path: Path) -> None:
    daemon = Daemon("http://127.0.0.1:9")
    install = Installer(daemon, Weights(downloads=tmp_path / "d"), Records(tmp_path / "s"))
    with pytest.raises(DaemonUnreachable, match=r"127\.0\.0\.1:9"):
        install.plan(tiny())
    daemon.close()
    assert not list(tmp_path.rglob("*.json"))
