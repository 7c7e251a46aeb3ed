"""Every fault of the network in every way of bringing bytes: one table, one invariant.

After anything there is the old model or the whole new one under the name, nothing of ours stays
that the next run does not clear, and the same command without the fault succeeds.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llava_ollama import Llava, catalog, swap
from llava_ollama.daemon import Daemon
from llava_ollama.errors import (
    ChecksumMismatch,
    DaemonBusy,
    DaemonError,
    DaemonTimeout,
    DaemonUnreachable,
    DownloadError,
    HubUnreachable,
    LlavaOllamaError,
    StoreError,
)
from llava_ollama.install import Installer, InstallResult, Wanted, from_catalog
from llava_ollama.ledger import Ledger
from llava_ollama.records import Kind, Records
from llava_ollama.tiny.check import check
from llava_ollama.transfer import Name
from llava_ollama.ways import Ways
from llava_ollama.weights import Weights
from tests.conftest import DAEMONS, start
from tests.daemons.running import RunningDaemon
from tests.hub import LoopbackHub
from tests.installing import MODEL, PROJECTOR, QUANTS, Listening, install
from tests.registry import LoopbackRegistry
from tests.store import Store
from tests.wire import Fault, Message, Wire

pytestmark = pytest.mark.ollama
REPO, TAG = "somebody/tiny", "tiny:int4"
KEEPER, NAME = "keeper", "mine"
KINDS: tuple[Kind, ...] = ("pending", "probe", "pulled", "transient")


@dataclass(frozen=True)
class Column:
    """A request of one way that is to be broken: before which server, which, and by which way."""

    server: str
    path: str
    way: Name
    on_disk: bool
    once: bool = False


ALWAYS = 1 << 30
SILENCE = {"late": 0.5}
"""Seconds; where no timeout is meant, none may come of a slow machine."""
COLUMNS = {
    "upload": Column("daemon", "POST /api/blobs", "upload", on_disk=True),
    "link": Column("daemon", "HEAD /api/blobs", "link", on_disk=True),
    "create": Column("daemon", "POST /api/create", "link", on_disk=True),
    "pull": Column("daemon", "POST /api/pull", "pull", on_disk=False),
    "manifest": Column("registry", "GET /v2/.*/manifests/", "pull", on_disk=False),
    "layers": Column("registry", "GET /direct/", "pull", on_disk=False, once=True),
    "bytes": Column("cdn", "GET /cdn", "upload", on_disk=False, once=True),
    "hub": Column("hub", "HEAD /somebody", "link", on_disk=False),
}


def reply(status: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


def whole(answer: Message) -> bytes:
    """Return all of a 206 as the 200 of a server that knows no ranges."""
    return re.sub(rb" 206[^\r]*", b" 200 OK", answer.whole, count=1)


def other(answer: Message) -> bytes:
    return answer.head + bytes(byte ^ 1 for byte in answer.body)


def other_etag(answer: Message) -> bytes:
    return re.sub(rb'(?i)(etag: "?)[0-9a-f]{8}', rb"\g<1>00000000", answer.whole)


FAULTS = {
    "refused": Fault(instead=b"", end="reset"),
    "stalled": Fault(instead=b"", end="stall"),
    "only the head sent": Fault(arrives=0),
    "half of it sent": Fault(arrives=0.5),
    "sent but for its last byte": Fault(arrives=1, end="reset"),
    "no answer": Fault(answer=lambda _: b""),
    "cut in the status line": Fault(answer=lambda answer: answer.head[:7]),
    "cut in the headers": Fault(answer=lambda answer: answer.head[: len(answer.head) // 2]),
    "cut after the headers": Fault(answer=lambda answer: answer.head),
    "cut in the middle": Fault(answer=lambda answer: answer.half),
    "cut before the last byte": Fault(answer=lambda answer: answer.whole[:-1], end="reset"),
    "stalled in the middle": Fault(answer=lambda answer: answer.half, end="stall"),
    "429, in an hour": Fault(instead=reply("429 Too Many Requests", "Retry-After: 3600")),
    "503, in an hour": Fault(instead=reply("503 Service Unavailable", "Retry-After: 3600")),
    "500": Fault(instead=reply("500 Internal Server Error")),
    "garbage": Fault(instead=b"\x00\x01 this is not HTTP\r\n\r\n"),
    "200 for a range": Fault(answer=whole),
    "other bytes, as many": Fault(answer=other),
    "short": Fault(answer=lambda answer: answer.resized(-0.5)),
    "long": Fault(answer=lambda answer: answer.resized(+0.5)),
    "in a circle": Fault(instead=reply("302 Found", "Location: ?again")),
    "another ETag": Fault(answer=other_etag),
}
ERRORS = {
    "broke": DaemonError,
    "late": DaemonTimeout,
    "busy": DaemonBusy,
    "strange": DaemonUnreachable,
    "no-way": StoreError,
    "hub": HubUnreachable,
    "follow": DownloadError,
    "sum": ChecksumMismatch,
}
TABLE = """
                           | upload   link     create   pull     manifest layers   bytes    hub
refused                    | broke    broke    broke    broke    no-way   ok       ok       hub
stalled                    | late     late     late     late     *no-way  *ok      *ok      *hub
only the head sent         | broke    -        broke    broke    -        -        -        -
half of it sent            | broke    -        broke    broke    -        -        -        -
sent but for its last byte | broke    -        broke    broke    -        -        -        -
no answer                  | ok       broke    broke    broke    no-way   ok       ok       hub
cut in the status line     | ok       broke    broke    broke    no-way   ok       ok       hub
cut in the headers         | ok       broke    broke    broke    no-way   ok       ok       hub
cut after the headers      | ok       ok       broke    broke    no-way   ok       ok       ok
cut in the middle          | ok       broke    broke    broke    no-way   ok       ok       hub
cut before the last byte   | ok       broke    broke    broke    no-way   ok       ok       hub
stalled in the middle      | late     late     late     late     *no-way  *ok      *ok      *hub
429, in an hour            | busy     busy     busy     busy     no-way   ok       hub      hub
503, in an hour            | busy     busy     busy     busy     no-way   ok       hub      hub
500                        | strange  strange  strange  strange  no-way   ok       ok       hub
garbage                    | broke    broke    broke    broke    no-way   ok       ok       hub
200 for a range            | -        -        -        -        -        ok       -        -
other bytes, as many       | ok       -        broke    broke    no-way   ok       sum      -
short                      | -        -        broke    strange  no-way   ok       ok       -
long                       | ok       ok       strange  strange  no-way   ok       ok       ok
in a circle                | strange  strange  strange  strange  no-way   ok       follow   follow
another ETag               | -        -        -        -        -        ok       ok       sum
"""
"""What a fault in a request comes to: `ok` where the install succeeds all the same, `-` where the
fault would change nothing, else a class of `ERRORS`. A star is for what waits for many seconds.

Where a column says `once`, what is to succeed is broken once, since these requests are repeated.
A 200 for a range of the Hub's is in test_weights.py, for it takes a file of more than one range.
"""

WORDINGS = {
    "broke": {
        "the connection to {host} broke off": "See whether the daemon still runs "
        "(`llava-ollama doctor`), then try again",
        "the daemon at {host} stopped in the middle of creating `llava-ollama-new-{hex}`": "Look "
        "at its log, and run the same command again",
        "the daemon at {host} says: digest mismatch, file must be downloaded again: want "
        "sha256:{hex}, got sha256:{hex}": "The registry delivers other bytes: use "
        "`--transfer upload`",
    },
    "late": {
        "the daemon at {host} did not answer within {seconds} seconds": "It may be loading a large "
        "model: set `LLAVA_OLLAMA_TIMEOUT` to more seconds"
    },
    "busy": {
        "the daemon at {host} has too many requests waiting": "Try again in a moment, or ask less "
        "at once"
    },
    "strange": {
        "what answers at {host} is not an Ollama daemon": "Check the address and port in `--host` "
        "or `OLLAMA_HOST`"
    },
    "no-way": {
        "the way that `--transfer` names is not open (pull: the registry does not tell what "
        f"`{TAG}` is ({{reason}}))": "Leave `--transfer` out"
    },
    "hub": {
        "{file} cannot be fetched from `{host}`: {reason}": "Check the network and run the same "
        "command again: it goes on where it stopped",
        "`{host}` cannot serve {file} now (HTTP {reason})": "Run the same command later: it goes "
        "on where it stopped",
        "`{host}` asks to wait 3601 seconds before it serves {file}": "Run the same command later: "
        "it goes on where it stopped",
    },
    "follow": {
        "the answer of `{host}` for {file} cannot be followed": "Check `HF_ENDPOINT`, and whether "
        "a proxy is in between"
    },
    "sum": {
        "{file} arrived with other bytes than the published ones (sha256 {hex}…, not {hex}…) and "
        "is now {file}": "Delete that file and run the same command again: it downloads anew",
        f"the Hub's {{file}} at `main` of `{REPO}` is not the pinned one": "Its owner has replaced "
        "it; pin the new one in a catalog file of your own",
    },
}
"""What is said of each class, and the hint; exit codes are the classes' own."""
CODES = {"late": 3, "strange": 3, "hub": 3}
REASONS = (
    "connection reset by peer|the connection was cut|no answer in time|its answer is no manifest|"
    "too many requests|service unavailable|internal server error|429|503|500|its "
    "redirects lead nowhere"
)


def is_worded(error: LlavaOllamaError, expected: str) -> None:
    """See that what is said, and the hint, stand in `WORDINGS`."""
    parts = {
        r"\{host\}": r"http://127\.0\.0\.1:\d+",
        r"\{hex\}": "[0-9a-f]+",
        r"\{seconds\}": "[0-9.]+",
        r"\{file\}": r"`[^`]*tiny-llava-int4\.gguf[^`]*`",
        r"\{reason\}": f"({REASONS})",
    }
    for message, hint in WORDINGS[expected].items():
        pattern = re.escape(message)
        for name, value in parts.items():
            pattern = pattern.replace(name, value)
        if re.fullmatch(pattern, error.message):
            assert error.hint == hint
            break
    else:
        pytest.fail(f"not in the table: {error.message}")
    assert error.exit_code == CODES.get(expected, 1)


def cells(column: str) -> list[tuple[str, str]]:
    """Return the faults of a column, and what becomes of each."""
    first, *lines = TABLE.strip("\n").splitlines()
    at = first.split("|")[1].split().index(column)
    rows = (line.split("|") for line in lines)
    return [(fault.strip(), said.split()[at]) for fault, said in rows]


@dataclass
class Bench:
    """A daemon, a registry and a Hub behind wires, and the old model under `NAME`."""

    running: RunningDaemon
    registry: LoopbackRegistry
    wires: dict[str, Wire]
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.files = [Path(shutil.copy(path, self.folder)) for path in (MODEL, PROJECTOR)]
        self.store = Store(self.running.models)
        self.records = Records(self.folder / "state")
        self.daemon = Daemon(self.running.host)
        self.reporter = Listening()

    def put_old(self) -> None:
        """Have the old model under the name, and nothing of the new one anywhere."""
        for wire in self.wires.values():
            wire.mend()
        swap.remove(self.daemon, NAME)
        self.daemon.copy(KEEPER, NAME)
        self.store.forget_orphans()
        shutil.rmtree(self.folder / "downloads", ignore_errors=True)

    def wanted(self, *, on_disk: bool) -> Wanted:
        wanted = from_catalog(catalog.load(), "tiny-llava", "int4", to=NAME)
        model, projector = (
            replace(file, path=path)
            if on_disk
            else replace(file, path=None, repo=REPO, library=TAG, size=path.stat().st_size)
            for file, path in zip((wanted.model, wanted.projector), self.files, strict=True)
        )
        parameters = {**wanted.parameters, "num_thread": 1}
        return replace(wanted, model=model, projector=projector, parameters=parameters)

    def install(
        self, way: Name | None, *, on_disk: bool, seconds: float = 60.0, **more: Any
    ) -> InstallResult:
        """Do what a command does, from the plan on, with all that it keeps made anew."""
        installer, daemon = self.installer(way, seconds=seconds, **more)
        try:
            return installer.apply(installer.plan(self.wanted(on_disk=on_disk)), force=True)
        finally:
            daemon.close()

    def installer(
        self, way: Name | None, *, seconds: float = 60.0, **more: Any
    ) -> tuple[Installer, Daemon]:
        daemon = Daemon(self.wires["daemon"].url, timeout=seconds, create_timeout=seconds)
        ledger = Ledger(self.folder / "ledger.sqlite3")
        weights = Weights(
            downloads=self.folder / "downloads",
            hub_cache=self.folder / "hub",
            endpoint=self.wires["hub"].url,
            ledger=ledger,
            reporter=self.reporter,
            wait=0.001,
        )
        ways = Ways(
            daemon=daemon,
            records=self.records,
            ledger=ledger,
            only=way,
            folders=(self.running.models,),
            registry=self.wires["registry"].url,
            **more,
        )
        installer = Installer(daemon, weights, self.records, ways=ways, reporter=self.reporter)
        return installer, daemon

    def broken(self, column: Column, fault: str, expected: str) -> LlavaOllamaError | None:
        """Install while the column's request has this fault; return how that failed."""
        wire = self.wires[column.server]
        times = 1 if column.once and expected == "ok" else ALWAYS
        wire.cut(column.path, FAULTS[fault], times=times)
        try:
            self.install(column.way, on_disk=column.on_disk, seconds=SILENCE.get(expected, 60))
        except LlavaOllamaError as exc:
            return exc
        else:
            return None
        finally:
            assert wire.met
            for each in self.wires.values():
                each.mend()

    def has_new(self) -> bool:
        sources = self.daemon.show(NAME).sources
        assert sources[0] in {sha256(path) for path in QUANTS.values()}
        return sources[0] == sha256(MODEL)

    def is_whole(self, *, alone: bool = False) -> None:
        """See that the new model is there with its bytes, and nothing else of this install."""
        assert self.has_new()
        assert sorted(self.store.manifests()) == ([NAME] if alone else [KEEPER, NAME])
        assert not [kind for kind in KINDS for _ in self.records.all(kind)]
        assert not self.store.orphans()
        for layer in self.store.manifests()[NAME]["layers"]:
            path = self.store.folder / "blobs" / layer["digest"].replace(":", "-")
            assert f"sha256:{sha256(path)}" == layer["digest"]
        assert not list((self.folder / "downloads").glob("*.partial"))
        assert [sha256(path) for path in self.files] == [sha256(MODEL), sha256(PROJECTOR)]

    def answers(self) -> None:
        with Llava(NAME, host=self.daemon.host) as llava:
            check(llava)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=DAEMONS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    running = start(str(request.param), folder := tmp_path_factory.mktemp("faults"))
    install(running.host, folder, KEEPER, model=QUANTS["f16"])
    yield running
    running.stop()


@pytest.fixture
def bench(running: RunningDaemon, tmp_path: Path) -> Iterator[Bench]:
    with benched(running, tmp_path / "us") as bench:
        bench.put_old()
        yield bench
        bench.put_old()


@contextmanager
def benched(running: RunningDaemon, folder: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        registry = stack.enter_context(LoopbackRegistry())
        hub = stack.enter_context(LoopbackHub())
        servers = {"daemon": running.host, "registry": registry.url}
        servers |= {"hub": hub.url, "cdn": hub.cdn_url}
        wires = {name: stack.enter_context(Wire(url)) for name, url in servers.items()}
        hub.cdn, registry.bytes_at = wires["cdn"].url, wires["registry"].url
        registry.publish(TAG, MODEL, PROJECTOR)
        for path in (MODEL, PROJECTOR):
            hub.publish(path, REPO)
        bench = Bench(running, registry, wires, folder)
        yield bench
        bench.daemon.close()


def is_in_style(error: LlavaOllamaError) -> None:
    """See what test_wording.py sees to: one sentence, a hint, no foreign words."""
    for said in (error.message, error.hint or ""):
        assert said
        assert "\n" not in said
        assert not said.endswith(".")
        assert not re.search(r"Errno|Error\b|Exception|<|Traceback|please|5ecret", said), said


def some(column: str, version: str, *, soak: bool) -> list[tuple[str, str]]:
    """Return the cells of a column that a run is for.

    A pull takes 0.24.0 seconds, and what is wrong with the Hub is the same before every daemon.
    """
    found = [(fault, said) for fault, said in cells(column) if said != "-"]
    waiting = [cell for cell in found if cell[1].startswith("*")]
    quick = [cell for cell in found if cell not in waiting]
    first = COLUMNS[column].way != "pull" and COLUMNS[column].server == "daemon"
    rare = quick if version == "0.24.0" and not first else []
    if soak:
        return [(fault, said.strip("*")) for fault, said in waiting + rare]
    return rare[::4] or quick


def break_all(bench: Bench, column: str, faults: list[tuple[str, str]]) -> None:
    for fault, expected in faults:
        where = f"{fault} in {column}"
        bench.put_old()
        error = bench.broken(COLUMNS[column], fault, expected)
        assert type(error) is ERRORS.get(expected, type(None)), (where, error)
        assert bench.has_new() == (error is None), where
        if error:
            is_in_style(error)
            is_worded(error, expected)
        # A daemon that was silent may yet finish; all else is cleared at once.
        left = sorted(bench.store.manifests())
        assert left == [KEEPER, NAME] or expected == "late", where
        kinds = {kind for kind in KINDS for _ in bench.records.all(kind)}
        assert kinds <= {"late": {"pending"}}.get(expected, {"transient"}), where
        again = bench.install(COLUMNS[column].way, on_disk=COLUMNS[column].on_disk)
        assert again.changed == (error is not None), where
        bench.is_whole()
    bench.answers()


@pytest.mark.parametrize("column", COLUMNS)
def test_every_fault(bench: Bench, column: str) -> None:
    break_all(bench, column, some(column, bench.running.version, soak=False))


@pytest.mark.soak
@pytest.mark.parametrize("column", COLUMNS)
def test_every_fault_that_takes_long(bench: Bench, column: str) -> None:
    break_all(bench, column, some(column, bench.running.version, soak=True))


MANY, DOWN = "429 Too Many Requests", "503 Service Unavailable"
MOMENTS = (
    *(("upload", MANY), ("link", DOWN), ("create", MANY), ("pull", DOWN)),
    *(("hub", MANY), ("hub", DOWN), ("bytes", MANY), ("bytes", DOWN)),
)


@pytest.mark.parametrize(("column", "status"), MOMENTS)
def test_who_asks_for_a_moment_gets_it(bench: Bench, column: str, status: str) -> None:
    request = COLUMNS[column]
    wire = bench.wires[request.server]
    wire.cut(request.path, Fault(instead=reply(status, "Retry-After: 1")), times=1)
    began = time.monotonic()
    assert bench.install(request.way, on_disk=request.on_disk).changed
    assert wire.met == 1
    assert time.monotonic() - began >= 1
    bench.is_whole()


def test_a_registry_that_says_nothing_more(bench: Bench) -> None:
    """A daemon waits for it for ever; we do not, and another way is open."""
    wire = bench.wires["registry"]
    wire.cut("GET /direct/", Fault(answer=lambda answer: answer.half, end="stall"))
    with pytest.raises(DaemonError, match="has stood still for 0 seconds") as caught:
        bench.install("pull", on_disk=False, pull_patience=0.4)
    is_in_style(caught.value)
    assert not bench.has_new()
    result = bench.install(None, on_disk=False, pull_patience=0.4)
    assert {part.transfer for part in result.parts} <= {"hard link", "reflink", "there"}
    assert any("going on by another way" in note for note in bench.reporter.notes)
    assert bench.has_new()
    wire.mend()
    assert not bench.install(None, on_disk=False).changed
    assert sorted(bench.store.manifests()) == [KEEPER, NAME]
    assert not list(bench.records.all("pulled"))
    bench.answers()


def test_a_registry_whose_bytes_are_never_right(bench: Bench) -> None:
    bench.wires["registry"].cut("GET /direct/", FAULTS["other bytes, as many"])
    with pytest.raises(DaemonError) as caught:
        bench.install("pull", on_disk=False)
    is_in_style(caught.value)
    is_worded(caught.value, "broke")
    assert sum("digest mismatch" in note for note in bench.reporter.notes) == 1
    assert not bench.has_new()
    bench.wires["registry"].mend()
    assert bench.install("pull", on_disk=False).changed
    bench.is_whole()


# The disk

LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.executable, [sys.executable, "-m", "llava_ollama", *sys.argv[2:]])
"""
SPACE = "Free space in the daemon's models folder and run the same command again"


@contextmanager
def full(running: RunningDaemon, largest: int) -> Iterator[None]:
    """Let the daemon write no more than so many bytes into any file."""
    assert running.process
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limits = (largest, resource.RLIM_INFINITY)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, limits)
    try:
        yield
    finally:
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.parametrize(
    ("way", "on_disk", "largest"),
    [
        ("upload", True, 500_000),
        # A daemon tries to write again for a minute, unless the disk itself is full, as below.
        pytest.param("pull", False, 500_000, marks=pytest.mark.soak),
        ("link", True, 20),
        ("link", True, 400),
    ],
)
def test_the_daemons_disk_is_full(bench: Bench, way: Name, largest: int, *, on_disk: bool) -> None:
    """A link writes no weights, but `create` writes template, parameters and manifest."""
    with full(bench.running, largest), pytest.raises(DaemonError) as caught:
        bench.install(way, on_disk=on_disk)
    assert "file too large" in caught.value.message
    assert caught.value.hint == SPACE
    is_in_style(caught.value)
    assert not bench.has_new()
    assert bench.install(way, on_disk=on_disk).changed
    bench.is_whole()
    bench.answers()


@pytest.mark.parametrize(
    ("column", "largest", "said"),
    [
        ("link", 10, r"the state folder `.*/state` cannot be written: File too large"),
        ("bytes", 500_000, r"`.*/downloads` cannot be used: file too large"),
    ],
)
def test_our_own_disk_is_full(bench: Bench, column: str, largest: int, said: str) -> None:
    request = COLUMNS[column]
    done = limited(bench, request, largest)
    assert done.returncode == 1
    first, hint = done.stderr.splitlines()[-2:]
    assert re.fullmatch(f"Error: {said}", first), done.stderr
    assert hint.startswith("Hint: ")
    assert "LLAVA_OLLAMA_" in hint
    assert not bench.has_new()
    assert sorted(bench.store.manifests()) == [KEEPER, NAME]
    again = limited(bench, request, 1 << 40)
    assert again.returncode == 0, again.stderr
    bench.is_whole()
    bench.answers()


def limited(bench: Bench, column: Column, largest: int) -> subprocess.CompletedProcess[str]:
    """Run the program, which may write no more than so many bytes into any file."""
    pair = [str(path) if column.on_disk else path.name for path in bench.files]
    call = ["install", "--model-file", pair[0], "--mmproj-file", pair[1], "--name", NAME]
    call += ["--force", "--transfer", column.way, "--parameter", "num_thread=1"]
    call += [] if column.on_disk else ["--repo", REPO]
    environment = {
        "HOME": str(bench.folder),
        "PATH": os.environ["PATH"],
        "OLLAMA_HOST": bench.running.host,
        "OLLAMA_MODELS": str(bench.running.models),
        "HF_ENDPOINT": bench.wires["hub"].url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LLAVA_OLLAMA_CACHE": str(bench.folder),
        "LLAVA_OLLAMA_STATE": str(bench.folder / "state"),
    }
    command = [sys.executable, "-c", LIMITED, str(largest), *call]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, into which the model fits, but not with its projector."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root of Linux may make a small disk; a file-size limit stands in for it")
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk may be mounted here; a file-size limit stands in for it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


SHUT = "read-only|is not open"


@pytest.mark.parametrize("version", DAEMONS)
@pytest.mark.parametrize("way", ["link", "upload", "pull"])
def test_a_small_disk_for_the_daemon(
    version: str, way: Name, small_disk: Path, tmp_path: Path
) -> None:
    """A real ENOSPC, and then a disk that has become read-only."""
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "models").symlink_to(small_disk)
    running = start(version, tmp_path / "daemon")
    try:
        with benched(running, tmp_path / "us") as bench:
            with pytest.raises(LlavaOllamaError, match="no space") as caught:
                bench.install(way, on_disk=way != "pull")
            is_in_style(caught.value)
            assert not bench.store.manifests()
            remount(small_disk, "size=20m")
            assert bench.install(way, on_disk=way != "pull").changed
            bench.is_whole(alone=True)
            swap.remove(bench.daemon, NAME)
            remount(small_disk, "ro")
            with pytest.raises(LlavaOllamaError, match=SHUT) as caught:
                bench.install(way, on_disk=way != "pull")
            is_in_style(caught.value)
            remount(small_disk, "rw")
            assert bench.install(way, on_disk=way != "pull").changed
            bench.is_whole(alone=True)
    finally:
        running.stop()


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "grown": _grow,
    "another file": lambda path: Path(shutil.copy(QUANTS["f16"], f"{path}.new")).replace(path),
    "gone": lambda path: path.unlink(),
}


class Meddling(Listening):
    """Changes a file as soon as one has been hashed."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self._changes = [change]

    def finished(self, task: str) -> None:
        if self._changes and not task.startswith("send"):
            self._changes.pop()()


@pytest.mark.parametrize("way", ["link", "upload"])
@pytest.mark.parametrize("after", ["plan", "hashing"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes(bench: Bench, way: Name, after: str, change: str) -> None:
    path, meddle = bench.files[0], CHANGES[change]
    if after == "hashing":
        bench.reporter = Meddling(lambda: meddle(path))
    installer, daemon = bench.installer(way)
    plan = installer.plan(bench.wanted(on_disk=True))
    if after == "plan":
        meddle(path)
    with pytest.raises(LlavaOllamaError) as caught:
        installer.apply(plan, force=True)
    daemon.close()
    is_in_style(caught.value)
    assert not bench.has_new()
    assert sorted(bench.store.manifests()) == [KEEPER, NAME]
    assert not bench.daemon.has_blob(sha256(MODEL))
    path.unlink(missing_ok=True)
    shutil.copy(MODEL, path)
    bench.reporter = Listening()
    assert bench.install(way, on_disk=True).changed
    bench.is_whole()
