"""Start a real Ollama daemon of one version: own models folder, own home, own port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemons import build

_START_SECONDS = 60


@dataclass
class RunningDaemon:
    """One daemon and its folders; `stop()` ends it and everything that it started."""

    version: str
    folder: Path
    binary: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    more: dict[str, str] = field(default_factory=dict)
    """Variables that it gets as well."""

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def rewrites(self) -> bool:
        """Whether `create` makes other bytes of a model than it was given."""
        return self.version == "0.34.0"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.models),
            "OLLAMA_NO_CLOUD": "1",  # 0.34 calls its cloud at start otherwise
            "OLLAMA_KEEP_ALIVE": "30m",
            **self.more,
        }

    def start(self) -> RunningDaemon:
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon; its runners are in its session and end with it."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None

    def is_dead(self) -> bool:
        """Tell whether the daemon has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def cli(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run the `ollama` program itself against this daemon; return what it prints."""
        done = subprocess.run(
            [self.binary, *arguments],
            env=self.environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text(errors="replace")

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.host}/api/version", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log()
                time.sleep(0.05)
        self.stop()
        raise AssertionError(f"{self.version} did not start:\n{self.log()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find(version: str) -> Path | None:
    """Return a daemon's program: from the cache, or with `installed` the user's own on PATH."""
    if version == "installed":
        return on_path()
    built = build.binary(version)
    return built if built.exists() else None


def on_path() -> Path | None:
    """Return the user's own `ollama`, which is tested as well where it is there."""
    found = shutil.which("ollama")
    return Path(found) if found else None
