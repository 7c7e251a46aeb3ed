"""Run the real command line in processes that are killed, and see what is left afterwards.

`python -m tests.killing` has every library loaded and forks for each command that it is told: the
same program in a process of its own, without the 0.3 s that Python needs to start it, so that
almost every kill hits the work itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Self, get_args

from llava_ollama import Llava, catalog, doctor_store, swap
from llava_ollama import store as stores
from llava_ollama.daemon import Daemon, Shown
from llava_ollama.errors import ModelBroken, ModelNotInstalled
from llava_ollama.install import from_catalog
from llava_ollama.ledger import Ledger
from llava_ollama.records import Kind, Records
from llava_ollama.tiny import shapes
from llava_ollama.transfer import Name
from tests.daemons.running import RunningDaemon
from tests.drawn import one_shape_pictures
from tests.hub import LoopbackHub
from tests.installing import PROJECTOR, QUANTS
from tests.registry import LoopbackRegistry
from tests.store import Store

ROOT = Path(__file__).parent.parent
REPO = "somebody/tiny"
PROBE_SIZE = 32
KINDS: tuple[Kind, ...] = get_args(Kind)
PASSING = [kind for kind in KINDS if kind not in {"installed", "rewritten"}]
"""Records that nothing may leave behind."""
CONFIG = 1000
"""Bytes; a config has less."""
LONGEST = 60.0
"""Seconds for one command, also one whose daemon has been killed."""
_CATALOG = """
[models.tiny-llava]
template = "llama3-instruct"
parameters.num_thread = 1
{repo}
projector = {{ file = "{projector}", size = {sizes[0]}, sha256 = "{digests[0]}" }}
[models.tiny-llava.quants]
int4 = {{ file = "{int4}", size = {sizes[1]}, sha256 = "{digests[1]}"{int4_more} }}
f16 = {{ file = "{f16}", size = {sizes[2]}, sha256 = "{digests[2]}"{f16_more} }}
"""
_LOADED = (
    *("llava_ollama.cli.install", "llava_ollama.install", "llava_ollama.tiny.demo"),
    *("httpx", "filelock", "sqlite3", "jinja2", "rich.console", "huggingface_hub", "tenacity"),
    *(
        "ollama",
        "numpy",
        "llava_ollama.cli.batch",
        "llava_ollama.batch.local",
        "PIL.PngImagePlugin",
    ),
    *("llava_ollama.engine.ollama", "llava_ollama.cli.watching", "PIL.JpegImagePlugin"),
    *("llava_ollama.weights.hub", "llava_ollama.weights.download", "llava_ollama.gguf.checks"),
)


@dataclass
class Running:
    """A command under way."""

    pid: int
    out: Path
    process: subprocess.Popen[bytes] | None = None
    """None for one that the forking process has started."""
    server: Forking | None = None

    def wait(self, seconds: float) -> bool:
        """Return whether it ended within so many seconds."""
        if self.server is not None:
            return self.server.ended(seconds)
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> bool:
        """Kill it; return whether it was still alive."""
        os.kill(self.pid, signal.SIGKILL)  # it stays at least as a zombie until `code` asks
        return self.code == -signal.SIGKILL

    @cached_property
    def code(self) -> int:
        assert self.wait(LONGEST), f"still running: {self.said}"
        if self.server is not None:
            return self.server.code()
        assert self.process is not None
        return self.process.returncode

    @property
    def said(self) -> str:
        return self.out.read_text(errors="replace")


@dataclass
class Forking:
    """The process that forks; a context manager."""

    environment: dict[str, str]
    _process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, arguments: Sequence[str], out: Path) -> Running:
        self._send(json.dumps([*arguments, str(out)]))
        return Running(int(self._answer()), out, server=self)

    def ended(self, seconds: float) -> bool:
        return bool(select.select([self._pipe], [], [], seconds)[0])

    def code(self) -> int:
        self._send("reap")
        assert self._answer() == "ended"
        return int(self._answer())

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def _answer(self) -> str:
        """Return one line, read without a buffer, since `select` does not see into one."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._pipe.fileno(), 1)
            assert byte, "the forking process died"
            line += byte
        return line.decode().strip()


def _serve() -> None:
    for name in _LOADED:
        import_module(name)
    _tell("ready")
    for line in sys.stdin:
        *arguments, out = json.loads(line)
        if not (pid := os.fork()):
            _run(arguments, out)
        _tell(pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        _tell("ended")
        assert sys.stdin.readline() == "reap\n"
        _tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _tell(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def _run(arguments: list[str], out: str) -> None:
    """Be the program, from here on."""
    from llava_ollama.cli import main

    for path, number in ((os.devnull, 0), (out, 1), (out, 2)):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags, 0o600), number)
    code: Any = 1
    try:
        main(arguments, prog_name="llava-ollama")
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


@dataclass
class Scene:
    """A daemon, a user's folders, and the same files here, on the Hub and in the registry."""

    running: RunningDaemon
    daemon: Daemon
    folder: Path
    registry: LoopbackRegistry
    hub: LoopbackHub
    way: Name
    downloading: bool
    forking: Forking = field(init=False)
    _commands: int = 0

    @property
    def store(self) -> Store:
        return Store(self.running.models)

    @property
    def records(self) -> Records:
        return Records(self.folder / "state")

    @property
    def environment(self) -> dict[str, str]:
        remote = self.downloading or self.way == "pull"
        return {
            "HOME": str(self.folder / "home"),
            "PATH": os.environ["PATH"],
            "OLLAMA_HOST": self.running.host,
            "OLLAMA_MODELS": str(self.running.models),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LLAVA_OLLAMA_REGISTRY": self.registry.url,
            "LLAVA_OLLAMA_CACHE": str(self.folder / "cache"),
            "LLAVA_OLLAMA_STATE": str(self.folder / "state"),
            "LLAVA_OLLAMA_CATALOG": str(
                self.folder / ("remote.toml" if remote else "files/given.toml")
            ),
        }

    def arguments(self, quant: str, name: str = "mine") -> list[str]:
        options = ["--quant", quant, "--force", "--name", name, "--transfer", self.way]
        return ["install", "tiny-llava", *options]

    def start(
        self, quant: str, name: str = "mine", *, forked: bool = True, by: Forking | None = None
    ) -> Running:
        """Start the command: all of it, or forked when Python and the libraries are loaded.

        A forking process, by default the scene's own, has one command at a time.
        """
        self._commands += 1
        out = self.folder / f"said-{self._commands}.txt"
        arguments = self.arguments(quant, name)
        if forked:
            return (by or self.forking).start(arguments, out)
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "llava_ollama", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        return Running(process.pid, out, process=process)

    def run(self, quant: str, name: str = "mine", *, forked: bool = True) -> float:
        """Install uninterrupted; return the seconds that it took."""
        begun = time.monotonic()
        running = self.start(quant, name, forked=forked)
        assert running.code == 0, running.said
        taken = time.monotonic() - begun
        running.out.unlink()
        return taken

    def show(self, name: str = "mine") -> Shown | str:
        """Return what is under the name, or why nothing can be shown."""
        try:
            return self.daemon.show(name)
        except ModelNotInstalled:
            return "absent"
        except ModelBroken:
            return "broken"

    def state(self, name: str = "mine") -> str:
        """Return which quant is whole under the name, or `absent`, `broken`, or what it is."""
        shown = self.show(name)
        if isinstance(shown, str):
            return shown
        for quant in QUANTS:
            wanted = from_catalog(self.catalog, "tiny-llava", quant, to=name)
            digests = str(wanted.model.sha256), str(wanted.projector.sha256)
            if shown.package() == wanted.package(*digests) and shown.has_vision:
                return quant
        return repr(shown)

    @cached_property
    def catalog(self) -> catalog.Catalog:
        return catalog.load(Path(self.environment["LLAVA_OLLAMA_CATALOG"]))

    def check_bytes(self) -> None:
        """See that every blob that a manifest names is there and has its digest."""
        for name, manifest in self.store.manifests().items():
            for layer in (*manifest.get("layers", ()), manifest.get("config")):
                if layer:
                    path = self.store.folder / "blobs" / layer["digest"].replace(":", "-")
                    assert path.exists(), f"`{name}` lacks its {layer['mediaType']}"
                    assert f"sha256:{sha256(path)}" == layer["digest"], (name, layer)

    def ask(self, name: str = "mine") -> None:
        """See that the model names what is on a picture."""
        picture, shape = next(one_shape_pictures(1, 5))
        with Llava(name, host=self.running.host) as llava:
            answer = llava.ask(picture, "Describe this image", options={"temperature": 0})
        assert shapes.names(shape, answer.text), (shape, answer.text)

    def begun(self) -> list[str]:
        """Return what a run that was killed has left: it had begun to change something."""
        found = [
            f"{kind} {record.get('phase', '')}".strip()
            for kind in PASSING
            for record in self.records.all(kind)
        ]
        return found + [path.name for path in self._unfinished()] + self.probes()

    def age(self) -> None:
        """Make what looks like a live writer's old: only its age tells that nobody is at it."""
        for path in self._unfinished():
            if path.suffix == ".tmp":
                os.utime(path, (0, 0))

    def probes(self) -> list[str]:
        return [f"probe {name}" for name, size in self.store.blobs().items() if size == PROBE_SIZE]

    def check_traces(self, *names: str, daemon_died: bool = False) -> None:
        """See that nothing of ours is left but the models `names`.

        What only the daemon can remove must at least be found by `doctor`: all that it has lost
        by its own death; else no weights, but the config of a `create` that it broke off (on
        0.24.0 the next one may have another, as the layers come in random order), and of a pull.
        """
        assert sorted(self.store.manifests()) == sorted(names), self.store.manifests()
        assert sorted(m.name for m in self.daemon.models()) == sorted(f"{n}:latest" for n in names)
        assert not self.begun(), self.begun()
        strange = self._strange()
        orphans = {k: size for k, size in self.store.orphans().items() if k not in strange}
        if orphans or strange:
            found = doctor_store.StoreDoctor(stores.Store(self.running.models), self.ledger)
            checks = {finding.check for finding in found.examine()}
            assert not orphans or "orphans" in checks, (orphans, checks)
            assert not strange or "leftovers" in checks, (strange, checks)
        left = orphans | strange
        assert daemon_died or all(size < CONFIG for size in left.values()), left
        self.clear_daemons_own()

    def clear_daemons_own(self) -> None:
        """Do what the daemon does at a start that is an hour later."""
        self.store.forget_orphans()
        for name in self._strange():
            (self.store.folder / "blobs" / name).unlink()

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "cache" / "ledger.sqlite3")

    def clear(self) -> None:
        """Leave no model; the daemon is empty again."""
        for model in self.daemon.models():
            swap.remove(self.daemon, model.name)
        self.store.forget_orphans()

    def _strange(self) -> dict[str, int]:
        """Return what is in `blobs/` under names that are no blob's, with sizes."""
        found = self.store.blobs().items()
        return {name: size for name, size in found if len(name) != len("sha256-") + 64}

    def _unfinished(self) -> Iterator[Path]:
        """Yield our own unfinished files."""
        yield from (self.folder / "state").rglob("*.tmp")
        yield from (self.folder / "cache").rglob("*.partial")
        yield from (self.folder / "cache").rglob("*.part")
        yield from (self.store.folder / "blobs").glob("sha256-llava-ollama-*")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def scene(
    running: RunningDaemon, folder: Path, way: Name, *, downloading: bool = False
) -> Iterator[Scene]:
    """Set the scene; commands then know only the files that they may use."""
    with ExitStack() as stack:
        registry = stack.enter_context(LoopbackRegistry())
        hub = stack.enter_context(LoopbackHub())
        daemon = Daemon(running.host)
        stack.callback(daemon.close)
        made = Scene(running, daemon, folder, registry, hub, way, downloading)
        _write_catalogs(made)
        made.forking = stack.enter_context(Forking(made.environment))
        yield made
        made.clear()


def _write_catalogs(made: Scene) -> None:
    files = made.folder / "files"
    files.mkdir(parents=True)
    pair = [Path(shutil.copy(path, files)) for path in (PROJECTOR, QUANTS["int4"], QUANTS["f16"])]
    for path in pair:
        made.hub.publish(path, REPO)
    for quant, path in zip(("int4", "f16"), pair[1:], strict=True):
        made.registry.publish(f"tiny:{quant}", path, pair[0])
    names = dict(zip(("projector", "int4", "f16"), (path.name for path in pair), strict=True))
    values: dict[str, Any] = {
        **names,
        "sizes": [path.stat().st_size for path in pair],
        "digests": [sha256(path) for path in pair],
    }
    given = {"repo": "", "int4_more": "", "f16_more": ""}
    (files / "given.toml").write_text(_CATALOG.format(**values, **given))
    remote = {
        "repo": f'repo = "{REPO}"\nrevision = "main"',
        "int4_more": ', library = "tiny:int4"',
        "f16_more": ', library = "tiny:f16"',
    }
    (made.folder / "remote.toml").write_text(_CATALOG.format(**values, **remote))


if __name__ == "__main__":
    _serve()
