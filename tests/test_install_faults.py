"""Whatever breaks during an install: the old model answers, and nothing half-made stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llava_ollama import catalog, swap
from llava_ollama.daemon import Daemon, Shown, full_name
from llava_ollama.errors import (
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    LlavaOllamaError,
    ModelBroken,
    TemplateError,
)
from llava_ollama.install import InstallPlan, InstallResult, Wanted, from_catalog
from llava_ollama.progress import Reporter
from llava_ollama.records import Records
from llava_ollama.weights import Weights
from tests.conftest import DAEMONS, start
from tests.installing import uploading
from tests.proxy import Fault, Proxy, installer
from tests.store import Store

pytestmark = pytest.mark.ollama
ROOT = Path(__file__).parent.parent
NAME = "mine"
CHANGING = ("POST /api/blobs", "POST /api/create", "POST /api/copy", "DELETE /api/delete")


def wanted(quant: str = "int4", name: str = NAME) -> Wanted:
    return from_catalog(catalog.load(), "tiny-llava", quant, to=name)


@dataclass
class Bench:
    """A daemon of our own with an old model under `NAME`, and a proxy before it."""

    daemon: Daemon
    proxy: Proxy
    store: Store
    folder: Path

    def install(
        self, *, timeout: float = 60.0, force: bool = True, plan: InstallPlan | None = None
    ) -> InstallResult:
        """Install the new model through the proxy."""
        install, client = installer(self.proxy.url, self.folder, timeout=timeout)
        try:
            return install.apply(plan or install.plan(wanted()), force=force)
        finally:
            client.close()

    def error(self, *, timeout: float = 60.0) -> LlavaOllamaError | None:
        """Install the new model through the proxy, and return how that failed."""
        try:
            self.install(timeout=timeout)
        except LlavaOllamaError as exc:
            return exc
        return None

    def put_old(self) -> None:
        """Have the old model under the name, and no traces of earlier installs."""
        self.proxy.reset()
        if self.daemon_has("int4") or not self.daemon_has("f16"):
            install, client = installer(self.daemon.host, self.folder)
            install.apply(install.plan(wanted("f16")), force=True)
            client.close()
        self.store.forget_orphans()

    def shown(self) -> Shown | None:
        try:
            return self.daemon.show(NAME)
        except DaemonError:
            return None

    def daemon_has(self, quant: str) -> bool:
        shown = self.shown()
        return shown is not None and shown.sources[:1] == (wanted(quant).model.sha256,)

    def recover(self) -> list[str]:
        """Do what the next run begins with; it asks the proxy, whose address the records name."""
        self.proxy.reset()
        client = Daemon(self.proxy.url)
        try:
            return swap.recover(client, Records(self.folder / "state"))
        finally:
            client.close()

    def pending(self) -> list[dict[str, str]]:
        return list(Records(self.folder / "state").all("pending"))

    def steps(self) -> list[str]:
        """Return the requests of an install over the old model."""
        self.put_old()
        assert self.install().changed
        return list(self.proxy.requests)


@pytest.fixture(scope="module", params=DAEMONS)
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Daemon, Proxy, Store]]:
    running = start(str(request.param), tmp_path_factory.mktemp("faults"))
    daemon = Daemon(running.host)
    with Proxy(running.host) as proxy:
        yield daemon, proxy, Store(running.models)
    daemon.close()
    running.stop()


@pytest.fixture
def bench(machine: tuple[Daemon, Proxy, Store], tmp_path: Path) -> Bench:
    bench = Bench(*machine, tmp_path / "us")
    bench.put_old()
    return bench


FULL = b'{"error":"write: no space left on device"}'
FAULTS = {
    "500": (Fault(status=500, body=b'{"error":"unlucky"}'), DaemonError),
    "no space": (Fault(status=500, body=FULL), DaemonError),
    "503": (Fault(status=503, body=b'{"error":"server busy"}'), DaemonBusy),
    "502": (Fault(status=502, body=b"<html>Bad Gateway</html>"), DaemonUnreachable),
    "page": (Fault(status=200, body=b"<html>welcome</html>"), DaemonUnreachable),
    "garbage": (Fault(garbage=True), DaemonError),
    "refused": (Fault(refuse=True), DaemonError),
    "cut": (Fault(cut=0), DaemonError),
    "cut later": (Fault(cut=20), DaemonError),
}


def broken_requests(steps: list[str], half: int) -> Iterator[tuple[int, str, str]]:
    """Half of the faults at each request that changes something, one at each that only asks.

    The two daemons get different halves.
    """
    kinds = list(FAULTS)
    for number, step in enumerate(steps):
        at = number + half
        for kind in kinds[at % 2 :: 2] if step.startswith(CHANGING) else [kinds[at % len(kinds)]]:
            yield number, step, kind


def test_one_broken_request(bench: Bench, request: pytest.FixtureRequest) -> None:
    half = DAEMONS.index(request.node.callspec.params["machine"])
    for number, step, kind in broken_requests(bench.steps(), half):
        fault, expected = FAULTS[kind]
        bench.put_old()
        bench.proxy.reset({number: fault})
        where = f"{kind} at {number} {step}"
        error = bench.error()
        # A short answer that arrived whole, a blob that is there, and clearing up afterwards
        # are no reason to fail.
        assert error is None or isinstance(error, expected | ModelBroken), (where, error)
        assert bench.daemon_has("f16" if error else "int4"), where
        assert not bench.pending() or bench.recover() == [NAME], where
        assert list(bench.store.manifests()) == [NAME], where


GONE = (
    b'{"error":"stat /m/manifests/registry.ollama.ai/library/x/latest: no such file or directory"}'
)
DENIED = b'{"error":"model \'x\' not found"}'


def test_another_model_goes_in_that_instant(bench: Bench) -> None:
    """A daemon then fails most requests, and denies that a model is there which is."""
    for number, step in enumerate(bench.steps()):
        faults = [Fault(status=400, body=GONE), Fault(status=500, body=GONE)]
        if step.startswith(("POST /api/show", "DELETE")):
            faults.append(Fault(status=404, body=DENIED))
        for fault in () if "/api/blobs/" in step else faults:
            bench.put_old()
            bench.proxy.reset({number: fault})
            assert bench.install().changed, (number, step, fault)
            assert bench.daemon_has("int4"), (number, step, fault)
            assert list(bench.store.manifests()) == [NAME], (number, step, fault)


def test_the_daemon_goes_away_for_good(bench: Bench) -> None:
    steps = bench.steps()
    for number, step in enumerate(steps):
        bench.put_old()
        bench.proxy.reset({number: Fault(refuse=True, only_from=True)})
        assert bench.error() or bench.daemon_has("int4"), step
        assert bench.shown(), step
        bench.recover()
        assert not bench.pending(), step
        assert list(bench.store.manifests()) == [NAME], step
        assert bench.daemon_has("f16") or step.startswith(("DELETE", "POST /api/show")), step


def test_silence_is_a_timeout(bench: Bench) -> None:
    steps = bench.steps()
    for number, step in enumerate(steps):
        if not step.startswith(CHANGING):
            continue
        bench.put_old()
        bench.proxy.reset({number: Fault(withhold=True)})
        error = bench.error(timeout=0.3)
        assert isinstance(error, DaemonTimeout) != step.startswith("DELETE"), (step, error)
        assert bench.daemon_has("f16" if error else "int4"), step
        bench.recover()
        assert not bench.pending(), step
        assert list(bench.store.manifests()) == [NAME], step


def run_in_process(bench: Bench) -> subprocess.Popen[str]:
    job = {"host": bench.proxy.url, "folder": str(bench.folder), "quant": "int4", "name": NAME}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.proxy", json.dumps(job)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def instants(steps: list[str]) -> list[tuple[int, str, Fault]]:
    """Before and after each request that changes something."""
    return [
        (number, step, fault)
        for number, step in enumerate(steps)
        if step.startswith(CHANGING)
        for fault in (Fault(hold=True), Fault(withhold=True))
    ]


def test_killed_at_every_step(bench: Bench) -> None:
    for number, step, fault in instants(bench.steps()):
        bench.put_old()
        bench.proxy.reset({number: fault})
        process = run_in_process(bench)
        assert bench.proxy.held.acquire(timeout=60), process.communicate()
        # While its writer lives, nobody touches a record.
        assert bench.pending()
        assert swap.recover(Daemon(bench.proxy.url), Records(bench.folder / "state")) == [], step
        assert bench.shown(), step
        process.kill()
        process.communicate()
        assert bench.shown(), step
        assert bench.recover() == [NAME], step
        assert not bench.pending(), step
        assert list(bench.store.manifests()) == [NAME], step
        assert bench.daemon_has("f16") or step.startswith("DELETE"), step
        bench.proxy.reset()
        assert bench.install().changed != step.startswith("DELETE"), step
        assert not bench.store.orphans(), step


def test_interrupted_at_every_step(bench: Bench) -> None:
    for number, step, fault in instants(bench.steps()):
        bench.put_old()
        bench.proxy.reset({number: fault})
        process = run_in_process(bench)
        assert bench.proxy.held.acquire(timeout=60), process.communicate()
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
        assert said == "interrupted\n", (step, errors)
        assert not bench.pending() or step.startswith("DELETE"), step
        bench.recover()
        assert list(bench.store.manifests()) == [NAME], step
        assert bench.daemon_has("f16") or step.startswith("DELETE"), step


def test_a_second_interrupt_leaves_a_record_for_the_next_run(bench: Bench) -> None:
    steps = bench.steps()
    at = [number for number, step in enumerate(steps) if step == "POST /api/copy"][1]
    bench.put_old()
    bench.proxy.reset({at: Fault(withhold=True), at + 1: Fault(hold=True)})
    process = run_in_process(bench)
    for _ in range(2):
        assert bench.proxy.held.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert said == "interrupted\n"
    assert bench.pending()
    assert len(bench.store.manifests()) == 3
    assert bench.recover() == [NAME]
    assert list(bench.store.manifests()) == [NAME]
    assert bench.daemon_has("f16")


class Interrupting(Reporter):
    """Presses Ctrl-C when the first bytes of the second file are sent."""

    def advanced(self, task: str, amount: int) -> None:  # noqa: ARG002 - the base class's
        if task.startswith("send "):
            raise KeyboardInterrupt


def test_interrupted_while_sending(bench: Bench) -> None:
    weights = Weights(downloads=bench.folder / "downloads")
    records = Records(bench.folder / "state")
    install = uploading(bench.daemon, weights, records, Interrupting())
    with pytest.raises(KeyboardInterrupt):
        install.apply(install.plan(wanted()), force=True)
    assert bench.daemon_has("f16")
    assert not bench.pending()
    assert list(bench.store.manifests()) == [NAME]


class Removing(Reporter):
    """Plays somebody who removes a model with the same file between its sending and `create`."""

    def __init__(self, blob: Path) -> None:
        self.blob = blob
        self.sent: list[str] = []

    def finished(self, task: str) -> None:
        self.sent.append(task)
        if len(self.sent) == 1:
            self.blob.unlink()


def test_a_blob_that_is_taken_away_before_create_is_sent_again(bench: Bench) -> None:
    blob = bench.store.folder / "blobs" / f"sha256-{wanted().model.sha256}"
    reporter = Removing(blob)
    weights = Weights(downloads=bench.folder / "downloads")
    records = Records(bench.folder / "state")
    install = uploading(bench.daemon, weights, records, reporter)
    result = install.apply(install.plan(wanted()), force=True)
    assert reporter.sent == [f"send {str(wanted().model.sha256)[:12]}"] * 2
    assert result.parts[0].bytes_written == 2 * blob.stat().st_size
    assert bench.daemon_has("int4")
    assert not bench.store.orphans()


def test_a_state_folder_that_cannot_be_written(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    weights = Weights(downloads=bench.folder / "downloads")
    install = uploading(bench.daemon, weights, Records(tmp_path / "file" / "state"))
    with pytest.raises(LlavaOllamaError, match="cannot be"):
        install.apply(install.plan(wanted()), force=True)
    assert bench.daemon_has("f16")


def test_the_old_model_answers_until_the_very_copy(bench: Bench) -> None:
    steps = bench.steps()
    at = [number for number, step in enumerate(steps) if step == "POST /api/copy"][1]
    bench.put_old()
    bench.proxy.reset({at: Fault(hold=True)})
    errors: list[LlavaOllamaError | None] = []
    thread = threading.Thread(target=lambda: errors.append(bench.error()))
    thread.start()
    assert bench.proxy.held.acquire(timeout=60)
    assert bench.daemon_has("f16")
    bench.proxy.release.set()
    thread.join()
    assert isinstance(errors[0], DaemonError)
    assert bench.daemon_has("f16")


def test_a_bad_template_fails_inside_http_200(bench: Bench) -> None:
    install, client = installer(bench.daemon.host, bench.folder)
    bad = replace(wanted(), template="{{ .Prompt", parameters={})
    with pytest.raises((DaemonError, TemplateError), match="template"):
        install.apply(install.plan(bad), force=True)
    client.close()
    assert bench.daemon_has("f16")
    assert list(bench.store.manifests()) == [NAME]


def test_an_empty_manifest_is_installed_over(bench: Bench) -> None:
    bench.store.manifest(NAME).write_text("")
    install, client = installer(bench.daemon.host, bench.folder)
    plan = install.plan(wanted())
    assert plan.existing == "broken"
    assert install.apply(plan).changed
    client.close()
    assert bench.daemon_has("int4")
    assert list(bench.store.manifests()) == [NAME]


@pytest.mark.parametrize("times", [1, 20])
def test_a_model_that_breaks_after_the_plan_is_not_written_over(bench: Bench, times: int) -> None:
    bench.proxy.reset()
    steps = bench.steps()
    bench.put_old()
    # The last `show` of the name before the swap answers 500: once is half a manifest, seen while
    # another install's `copy` writes it, and always is no reason to lose a model either.
    at = next(n for n, step in enumerate(steps) if step == "POST /api/copy") - 1
    bench.proxy.reset({at + n: Fault(status=500, body=b'{"error":"EOF"}') for n in range(times)})
    if times == 1:
        bench.install()
    else:
        with pytest.raises(ModelBroken):
            bench.install()
        bench.proxy.reset()
        assert bench.daemon_has("f16")
        bench.install()  # and what the broken one could not clear is cleared
    assert bench.daemon_has("int4")


@pytest.mark.parametrize("alone", [True, False])
def test_remove_of_an_empty_manifest(bench: Bench, *, alone: bool) -> None:
    if not alone:
        bench.daemon.copy(NAME, "other")
    bench.store.manifest(NAME).write_text("")
    swap.remove(bench.daemon, NAME)
    assert list(bench.store.manifests()) == ([] if alone else ["other"])
    swap.remove(bench.daemon, "other")
    assert not bench.store.manifests()


def record(bench: Bench, phase: str, **more: str) -> dict[str, str]:
    left = {
        "host": bench.proxy.url,
        "name": NAME,
        "temporary": "llava-ollama-new-000000000001",
        "backup": "llava-ollama-old-000000000001",
        "phase": phase,
    }
    left |= more
    key = (left["host"], full_name(NAME))
    Records(bench.folder / "state").put("pending", *key, record=left)
    return left


def test_the_daemon_died_while_it_wrote_the_name(bench: Bench) -> None:
    left = record(bench, "replace")
    bench.daemon.copy(NAME, left["backup"])
    bench.daemon.copy(NAME, left["temporary"])
    bench.store.manifest(NAME).write_text("")
    assert bench.recover() == [NAME]
    assert list(bench.store.manifests()) == [NAME]
    assert bench.daemon_has("f16")


def test_a_backup_that_cannot_be_read_for_a_moment_is_waited_for(bench: Bench) -> None:
    left = record(bench, "replace")
    bench.daemon.copy(NAME, left["backup"])
    bench.store.manifest(NAME).write_text("")
    whole = bench.store.manifest(left["backup"]).read_text()
    bench.store.manifest(left["backup"]).write_text("")
    timer = threading.Timer(0.4, bench.store.manifest(left["backup"]).write_text, [whole])
    timer.start()
    assert bench.recover() == [NAME]
    timer.join()
    assert list(bench.store.manifests()) == [NAME]
    assert bench.daemon_has("f16")


def test_a_backup_that_stays_unreadable_is_not_deleted(bench: Bench) -> None:
    left = record(bench, "replace")
    bench.daemon.copy(NAME, left["backup"])
    whole = bench.store.manifest(left["backup"]).read_text()
    bench.store.manifest(left["backup"]).write_text("")
    assert bench.recover() == [NAME]
    assert bench.store.manifest(left["backup"]).exists()
    bench.store.manifest(left["backup"]).write_text(whole)
    bench.daemon.delete(left["backup"])


@pytest.mark.parametrize("phase", ["replace", "place"])
def test_a_model_that_the_user_made_after_a_kill_stays(bench: Bench, phase: str) -> None:
    left = record(bench, phase)
    bench.daemon.copy(NAME, left["backup"])
    bench.daemon.copy(NAME, left["temporary"])
    digest = str(wanted("f16").model.sha256)
    files, template = {"x.gguf": digest}, "{{ .Prompt }}"
    made = bench.daemon.create(NAME, files=files, template=template, system="own", parameters={})
    assert list(made)
    assert bench.recover() == [NAME]
    assert list(bench.store.manifests()) == [NAME]
    shown = bench.shown()
    assert shown is not None
    assert shown.system == "own"
    swap.remove(bench.daemon, NAME)


def test_the_new_model_on_the_name_gives_way_to_the_old_one(bench: Bench) -> None:
    left = record(bench, "replace")
    bench.daemon.copy(NAME, left["backup"])
    install, client = installer(bench.daemon.host, bench.folder / "other")
    install.apply(install.plan(wanted()), force=True)
    client.close()
    bench.daemon.copy(NAME, left["temporary"])
    assert bench.daemon_has("int4")
    assert bench.recover() == [NAME]
    assert list(bench.store.manifests()) == [NAME]
    assert bench.daemon_has("f16")


@pytest.mark.parametrize(
    "wrong",
    [
        {"backup": "precious"},
        {"temporary": "precious"},
        {"temporary": "llava-ollama-old-000000000001"},
        {"backup": "llava-ollama-old-000000000001:x"},
        {"name": "no name"},
    ],
    ids=str,
)
def test_a_record_that_is_not_ours_deletes_nothing(bench: Bench, wrong: dict[str, str]) -> None:
    bench.daemon.copy(NAME, "precious")
    left = record(bench, "replace") | wrong
    Records(bench.folder / "state").put("pending", bench.proxy.url, f"{NAME}:latest", record=left)
    assert bench.recover() == []
    assert bench.install().changed
    assert sorted(bench.store.manifests()) == [NAME, "precious"]
    bench.daemon.delete("precious")


def test_a_record_without_anything_is_written_over(bench: Bench) -> None:
    records = Records(bench.folder / "state")
    records.put("pending", bench.proxy.url, f"{NAME}:latest", record={"a": "b"})
    assert bench.install().changed
    assert not bench.pending()


def test_a_record_counts_under_every_name_of_this_machine(bench: Bench) -> None:
    left = record(bench, "")
    bench.daemon.copy(NAME, left["temporary"])
    client = Daemon(bench.proxy.url.replace("127.0.0.1", "localhost"))
    bench.proxy.reset()
    assert swap.recover(client, Records(bench.folder / "state")) == [NAME]
    client.close()
    assert list(bench.store.manifests()) == [NAME]


def test_the_daemon_died_while_it_wrote_a_fresh_name(bench: Bench) -> None:
    left = record(bench, "place")
    bench.daemon.copy(NAME, left["temporary"])
    bench.store.manifest(NAME).write_text("")
    assert bench.install(force=False).changed
    assert list(bench.store.manifests()) == [NAME]
    assert bench.daemon_has("int4")


def test_the_daemon_died_while_it_wrote_the_backup(bench: Bench) -> None:
    left = record(bench, "")
    bench.daemon.copy(NAME, left["temporary"])
    bench.daemon.copy(NAME, left["backup"])
    bench.store.manifest(left["backup"]).write_text("")
    assert bench.recover() == [NAME]
    assert list(bench.store.manifests()) == [NAME]
    assert bench.daemon_has("f16")


def test_a_broken_record_of_something_else_is_left_alone(bench: Bench) -> None:
    records = Records(bench.folder / "state")
    records.put("pending", "elsewhere", "x", record={"host": "http://127.0.0.1:1", "name": "x"})
    records.put("pending", "torn", "x", record={"host": bench.proxy.url, "name": "x"})
    assert bench.recover() == []
    assert len(bench.pending()) == 2


def test_two_installs_of_one_name(bench: Bench) -> None:
    swap.remove(bench.daemon, NAME)
    results: list[InstallResult | LlavaOllamaError] = []
    install, client = installer(bench.proxy.url, bench.folder)
    plan = install.plan(wanted())
    client.close()

    def run() -> None:
        try:
            results.append(bench.install(force=False, plan=plan))
        except LlavaOllamaError as exc:
            results.append(exc)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changed = [r.changed if isinstance(r, InstallResult) else r for r in results]
    assert sorted(map(str, changed)) == ["False", "False", "True"]
    assert bench.proxy.sent == sum(
        p.bytes_written for r in results if isinstance(r, InstallResult) for p in r.parts
    )
    assert list(bench.store.manifests()) == [NAME]
    assert not bench.store.orphans()


def test_two_processes_install_one_name(bench: Bench) -> None:
    processes = [run_in_process(bench) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(said) == ["changed False\n", "changed True\n"]
    assert bench.daemon_has("int4")


def test_names_that_share_blobs_come_and_go_together(bench: Bench) -> None:
    """One is installed again and again while another one with the same files is removed."""
    swap.remove(bench.daemon, NAME)
    failures: list[BaseException] = []

    def run(name: str) -> None:
        install, client = installer(bench.daemon.host, bench.folder)
        try:
            for _ in range(8):
                install.apply(install.plan(wanted(name=name)), force=True)
                shown = client.show(name)
                assert shown.has_vision
                swap.remove(client, name, Records(bench.folder / "state"))
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
    assert not bench.store.manifests()
    assert not bench.pending()
