"""The most memory that a whole `llava-ollama install` takes, by every way that bytes can go.

    python -m tests.bench.bench_memory [BYTES]

It must not grow with the files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llava_ollama import resources
from llava_ollama.daemon import Daemon
from llava_ollama.errors import ModelNotInstalled
from tests.bench import Figure
from tests.bench.bench_install import REPO, environment
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.hub import LoopbackHub
from tests.large import padded

SIZES = (1_200_000_000, 4_900_000_000)
"""Bytes."""
VERSION = "0.34.4"
BAR = 150.0
"""Megabytes."""
WAYS = {
    "link, hashed": ("--transfer", "link", "--rehash"),
    "upload": ("--transfer", "upload", "--rehash"),
    "Hub download and link": ("--repo", REPO),
    "Hub download and upload": ("--repo", REPO, "--transfer", "upload"),
}
WATCH = """
import json, os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(process, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss]))
"""
"""A process counts the memory of the one that it was forked from: so that is a small one."""


def measure(sizes: Iterable[int] = SIZES) -> list[Figure]:
    figures = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            figures += _measure(Path(folder), size)
    return figures


def _measure(folder: Path, size: int) -> list[Figure]:
    model = padded(resources.bundled("tiny-llava-int4.gguf"), folder / "model.gguf", size)
    projector = folder / "mmproj.gguf"
    shutil.copy(resources.bundled("tiny-llava-mmproj-f16.gguf"), projector)
    daemon = RunningDaemon(VERSION, folder / "daemon", build.ensure(VERSION)).start()
    figures = []
    try:
        with LoopbackHub() as hub:
            for path in (model, projector):
                hub.publish(path, REPO)
            for way, options in WAYS.items():
                local = "--repo" not in options
                files = (model, projector) if local else (Path(model.name), Path(projector.name))
                env = environment(daemon, hub, folder / "ours")
                used = _peak(daemon, [*map(str, files)], options, env)
                what = f"{size / 1e9:.1f} GB: most memory of `install`, {way}"
                figures.append(Figure(what, "-", used / 1e6, BAR, 1, "MB"))
                shutil.rmtree(folder / "ours")
    finally:
        daemon.stop()
    return figures


def _peak(
    daemon: RunningDaemon, files: list[str], options: tuple[str, ...], env: dict[str, str]
) -> int:
    """Install once into a daemon without the model; return the peak in bytes."""
    _remove(daemon)
    program = Path(sys.executable).with_name("llava-ollama")
    command = [str(program), "install", "--name", "bench", "--quiet", *options]
    command += ["--model-file", files[0], "--mmproj-file", files[1]]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *command],
        env=env,
        cwd=daemon.folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    code, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def _remove(running: RunningDaemon) -> None:
    daemon = Daemon(running.host)
    with suppress(ModelNotInstalled):
        daemon.delete("bench")
    daemon.close()


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    sys.stdout.writelines(figure.row() + "\n" for figure in measure(given or SIZES))
