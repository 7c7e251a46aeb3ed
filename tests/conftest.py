"""What all tests share: an environment of their own, and real daemons."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from llava_ollama.daemon import Daemon
from tests.daemons import build, running
from tests.daemons.running import RunningDaemon
from tests.places import PLACES, Asked, Place, opened

DAEMONS = ("0.24.0", "0.34.4")
COLUMN = "colour and shape right"
"""The property by which a test adds a line to the table at the end; it crosses processes."""


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's files, settings and proxies."""
    for name in list(os.environ):
        if name.upper().startswith(("OLLAMA_", "LLAVA_OLLAMA_", "LLAMA_", "HF_", "XDG_")) or (
            name.upper().endswith("_PROXY")
        ):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # Nobody listens there: no test asks the public library for anything.
    monkeypatch.setenv("LLAVA_OLLAMA_REGISTRY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")  # it would look for its public host
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


def pytest_configure() -> None:
    """Let tests press Ctrl-C and hang up: a background job of a shell has these signals ignored,
    and so do the programs that it starts, unless somebody handles them on the way."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    settings.register_profile("here", deadline=None)  # a busy machine is no fault of ours
    settings.load_profile("here")
    build.cache_root()  # found now, before a test has a home of its own


def pytest_report_header() -> list[str]:
    """Say which daemons there are, so that a log answers what was met."""
    found = {version: running.find(version) for version in (*DAEMONS, "0.34.0")}
    return [f"ollama {version}: {path or 'MISSING'}" for version, path in found.items()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests measured, whatever is captured."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [line for report in reports for kind, line in report.user_properties if kind == COLUMN]
    if lines:
        terminalreporter.section(COLUMN)
        terminalreporter.write_line("\n".join(sorted(map(str, lines))))


def built(version: str) -> Path:
    """Return a daemon's program; without it fail in CI and skip loudly elsewhere."""
    binary = running.find(version)
    if binary is None:
        reason = f"Ollama {version} is not built: run `make daemons` (10 minutes, once)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return binary


def start(version: str, folder: Path) -> RunningDaemon:
    """Start a daemon, where it is `built`."""
    return RunningDaemon(version, folder, built(version)).start()


@pytest.fixture(scope="session", params=(*DAEMONS, *(["installed"] if running.on_path() else [])))
def ollama(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    """A daemon of each version that users have; it is shared, so tests use names of their own."""
    version = str(request.param)
    daemon = start(version, tmp_path_factory.mktemp(f"ollama-{version}"))
    yield daemon
    daemon.stop()


@pytest.fixture
def daemon(ollama: RunningDaemon) -> Iterator[Daemon]:
    """Our admin client of the shared daemon."""
    client = Daemon(ollama.host)
    yield client
    client.close()


@pytest.fixture(scope="module", params=PLACES)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Each of those who answer, with the tiny model."""
    with opened(str(request.param), tmp_path_factory.mktemp("place"), start) as place:
        yield place


@pytest.fixture(scope="module", params=["plain", "async"])
def engine(request: pytest.FixtureRequest, place: Place) -> Iterator[Asked]:
    """An engine of each kind there."""
    with ExitStack() as stack:
        yield place.asked(str(request.param), stack)
