"""A real Ray cluster of two nodes on the loopback address, in a process and a HOME of its own.

    with RayCluster(folder) as cluster:
        run a driver with `cluster.environment`, at `cluster.address`
        cluster.lose()  # the node that the driver is not on

Ray's own tests start their clusters the same way, by `ray.cluster_utils`. Its processes are all
in one session, and it gives them up to thirty seconds to end, so they are killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent
_STORE = 80_000_000
"""Bytes of shared memory that a node has for objects; Ray takes no less than 75 MiB."""


@dataclass
class RayCluster:
    """A head, `one`, and one more node, `two`; a context manager."""

    folder: Path
    more: Mapping[str, str] = field(default_factory=dict)
    """Variables of both nodes."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Variables that the processes on the second node have besides."""
    address: str = ""
    _process: subprocess.Popen[str] = field(init=False)
    _sockets: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a driver needs as well."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "RAY_AUTH_MODE": "disabled",  # it would write a token into HOME
            "RAY_USAGE_STATS_ENABLED": "0",
            # As on macOS: all of Ray then stays on 127.0.0.1 instead of the first real interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TMPDIR": self._sockets,
            **self.more,
        }

    def __enter__(self) -> Self:
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        # pytest's folders are too long for the name of a Unix socket: 107 bytes.
        self._sockets = tempfile.mkdtemp(prefix="ray-")
        with (self.folder / "ray.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.clusters", json.dumps(dict(self.own))],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.address = self._answer()
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def lose(self) -> None:
        """Kill the second node, as if its machine had lost its power."""
        self._command("lose")

    def join(self) -> None:
        """Start a second node again."""
        self._command("join")

    def _command(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._answer() == word

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, (self.folder / "ray.log").read_text(errors="replace")
        return line


def _serve(own: Mapping[str, str]) -> None:
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {
        "num_cpus": 2,
        "object_store_memory": _STORE,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }
    first, other = {**node, "node_name": "one"}, {**node, "node_name": "two", "env_vars": dict(own)}
    cluster = Cluster(initialize_head=True, head_node_args=first, shutdown_at_exit=False)
    second = cluster.add_node(**other)
    _tell(cluster.address)
    for line in sys.stdin:
        if (word := line.strip()) == "lose":
            cluster.remove_node(second, allow_graceful=False)
        else:
            second = cluster.add_node(**other)
        _tell(word)
    os.killpg(0, signal.SIGKILL)  # whoever started this is gone


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
