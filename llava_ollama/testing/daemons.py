"""A real Ollama daemon with the tiny model in it: one of our own where there is a program for it.

Its models and its home are in a folder of the test run's, its port is one that the system chose. A
daemon that was there before gets a model under a name that nobody else has, for as long as the
tests last.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llava_ollama.errors import DaemonUnreachable, EngineUnavailable, UsageProblem
from llava_ollama.settings import Settings, is_loopback, parse_host
from llava_ollama.testing import keeper
from llava_ollama.testing.servers import MODEL, TINY

OPTION = "--llava-daemon"
_HINT = f"Install Ollama, or name a program or an address: `{OPTION} 127.0.0.1:11434`"
_LISTENING = re.compile(r"Listening on (127\.0\.0\.1:[0-9]+)")
_START, _BLINK = 60.0, 0.02
"""Seconds to wait for the first word, and between two looks."""


@dataclass(frozen=True)
class OllamaDaemon:
    """A daemon that answers, and the name that the tiny model has there."""

    host: str
    """Its base URL, as `OLLAMA_HOST` and `ollama.Client(host)` take it."""
    model: str


@contextmanager
def opened(named: str | None, folder: Path) -> Iterator[OllamaDaemon]:
    """Yield a daemon: the one that is `named`, else a new one, else that of `OLLAMA_HOST`.

    `folder` is empty and ours.

    Raises:
        EngineUnavailable: there is none.
        DaemonUnreachable: the program ends by itself, or nothing answers at the address.
        UsageProblem: `named` is neither a program nor an address.
    """
    found = find(named, Settings.read())
    if isinstance(found, Path):
        with _running(found, folder) as host, _installed(host, MODEL, folder):
            yield OllamaDaemon(host, MODEL)
        return
    try:
        _greet(found)
    except DaemonUnreachable as exc:
        if named:
            raise
        raise EngineUnavailable(
            f"`ollama` is not on PATH, and nothing answers at `{found}` (OLLAMA_HOST)", hint=_HINT
        ) from exc
    name = f"{MODEL}-test-{secrets.token_hex(4)}"
    with _installed(found, name, folder):
        yield OllamaDaemon(found, name)


def _greet(host: str) -> None:
    from llava_ollama.daemon import Daemon

    with closing(Daemon(host)) as daemon:
        daemon.version()


def find(named: str | None, settings: Settings) -> Path | str:
    """Return a program to start, or the base URL of a daemon that runs.

    Raises:
        EngineUnavailable: there is neither.
        UsageProblem: `named` or `OLLAMA_HOST` cannot be meant.
    """
    if program := shutil.which(named or "ollama"):
        return Path(program)
    if named:
        if os.sep in named and "://" not in named:
            raise UsageProblem(f"`{named}` in {OPTION} is not a program", hint=_HINT)
        return parse_host(named, OPTION)
    if not settings.address:
        raise EngineUnavailable("`ollama` is not on PATH and OLLAMA_HOST is not set", hint=_HINT)
    # A shell's profile may name a machine that others work with.
    if not is_loopback(settings.host):
        raise EngineUnavailable(
            f"`ollama` is not on PATH, and `{settings.address}` in OLLAMA_HOST is another machine",
            hint=f"To use it all the same: `{OPTION} {settings.address}`",
        )
    return settings.host


@contextmanager
def _running(program: Path, folder: Path) -> Iterator[str]:
    """Start a daemon and yield its base URL."""
    log = folder / "ollama.log"
    (folder / "home").mkdir()
    with log.open("wb") as file:
        keeping = subprocess.Popen(  # noqa: S603 - the program that the user has or names
            [sys.executable, "-I", keeper.__file__, program],
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for the tests; they end it when they are done
        )
    with keeping:  # which closes its input, and waits for it
        yield _address(keeping, program, log)


def _environment(folder: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("OLLAMA_") and not name.upper().endswith("_PROXY")
    }
    home = str(folder / "home")
    return {
        **kept,
        "HOME": home,
        "USERPROFILE": home,
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NO_CLOUD": "1",  # 0.34 calls its cloud at start otherwise
        "OLLAMA_KEEP_ALIVE": "30m",
    }


def _address(process: subprocess.Popen[bytes], program: Path, log: Path) -> str:
    """Wait until the daemon has a port, which its log names: nobody else can have taken it."""
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := _LISTENING.search(text):
            return f"http://{found[1]}"
        if process.poll() is not None:
            last = (text.strip().splitlines() or ["nothing"])[-1]
            raise DaemonUnreachable(f"`{program} serve` ended at once; it said: {last}")
        time.sleep(_BLINK)
    raise DaemonUnreachable(f"`{program} serve` did not listen within {_START:g} s")


@contextmanager
def _installed(host: str, name: str, folder: Path) -> Iterator[None]:
    """Install the tiny model as `name`, and remove it again."""
    from llava_ollama import catalog
    from llava_ollama.daemon import Daemon
    from llava_ollama.install import Installer, from_catalog
    from llava_ollama.ledger import LEDGER, Ledger
    from llava_ollama.records import Records
    from llava_ollama.ways import Ways
    from llava_ollama.weights import Weights

    with closing(Daemon(host)) as daemon:
        known, records = catalog.load(), Records(folder / "state")
        # Not linked: whatever a test does to the daemon's files, the package's stay as they are.
        ways = Ways(daemon=daemon, records=records, ledger=Ledger(folder / LEDGER), only="upload")
        weights = Weights(downloads=folder / "downloads", catalog=known)
        installer = Installer(daemon, weights, records, ways=ways)
        installer.apply(installer.plan(from_catalog(known, TINY, None, to=name)))
        try:
            yield
        finally:
            daemon.delete(name)
