"""Download and install from a Hub on this machine, against the card's way: curl, then create;
against the least that can be done, bare `http_get` and hashlib; and what either leaves on the disk.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llava_ollama import modelfile, resources
from llava_ollama.catalog import LLAMA3_PARAMETERS
from llava_ollama.daemon import Daemon
from llava_ollama.errors import ModelNotInstalled
from tests.bench import Figure, seconds
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.hub import LoopbackHub
from tests.large import padded

ROUNDS = {"tiny": 7, "1 GB": 5}
REPO = "bench/pair"
NAMES = ("model.gguf", "mmproj.gguf")
VERSION = "0.34.4"
BARE = """
import hashlib, sys
from huggingface_hub.file_download import http_get
for url, path in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(path, "wb") as file:
        http_get(url, file)
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256").hexdigest()
"""


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> list[Figure]:
    figures = []
    small = resources.bundled("tiny-llava-int4.gguf")
    large = padded(small, folder / "large.gguf", 1_000_000_000)
    daemon = RunningDaemon(VERSION, folder / "daemon", build.ensure(VERSION)).start()
    try:
        for label, model in (("tiny", small), ("1 GB", large)):
            figures += _pair(daemon, folder / "work", label, model)
    finally:
        daemon.stop()
    return figures


def _pair(daemon: RunningDaemon, work: Path, label: str, model: Path) -> list[Figure]:
    """Measure one pair; what the installs before left is removed outside the measurement."""
    pair = (model, resources.bundled("tiny-llava-mmproj-f16.gguf"))
    size, rounds = sum(path.stat().st_size for path in pair), ROUNDS[label]
    with LoopbackHub() as hub:
        for path, name in zip(pair, NAMES, strict=True):
            hub.publish(path, REPO, name=name)
        ways = (_ours(daemon, hub, work), _by_hand(daemon, hub, work), _bare(hub, work))
        times: list[list[float]] = []
        disk = [0.0, 0.0, 0.0]
        for _ in range(rounds + 1):
            times.append([])
            for number, way in enumerate(ways):
                _remove(daemon, work)
                times[-1].append(seconds(way))
                disk[number] = _on_disk(work, daemon.models) / size
        _remove(daemon, work)

    def against(number: int) -> float:
        return statistics.median(each[0] / each[number] for each in times[1:])

    what, by_hand = f"download and install a pair of {label}", f"`curl` and `create` of {VERSION}"
    figures = [Figure(what, by_hand, against(1), None, rounds)]
    if label != "tiny":
        bare = "bare `http_get`, then hashlib"
        figures += [
            Figure(what, bare, against(2), 1.1, rounds),
            Figure(f"{what}: bytes on disk", "the files' size", disk[0], 1.01, rounds),
            Figure(f"{by_hand}: bytes on disk", "the files' size", disk[1], None, rounds),
        ]
    return figures


def _ours(daemon: RunningDaemon, hub: LoopbackHub, work: Path) -> Callable[[], None]:
    command = [str(Path(sys.executable).with_name("llava-ollama")), "install", "--repo", REPO]
    command += ["--model-file", NAMES[0], "--mmproj-file", NAMES[1], "--name", "bench", "--quiet"]
    env = environment(daemon, hub, work)

    def install() -> None:
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, cwd=work)

    return install


def environment(daemon: RunningDaemon, hub: LoopbackHub, folder: Path) -> dict[str, str]:
    """Return what the program is told: this daemon, this Hub, folders of its own."""
    return {
        **_clean(),
        "OLLAMA_HOST": daemon.host,
        "OLLAMA_MODELS": str(daemon.models),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "LLAVA_OLLAMA_CACHE": str(folder / "cache"),
        "LLAVA_OLLAMA_STATE": str(folder / "state"),
    }


def _by_hand(daemon: RunningDaemon, hub: LoopbackHub, work: Path) -> Callable[[], None]:
    model, projector = (f"./{name}" for name in NAMES)
    template = modelfile.chat_template()
    text = modelfile.render(modelfile.Modelfile(model, projector, template, "", LLAMA3_PARAMETERS))

    def install() -> None:
        for url, name in zip(_urls(hub), NAMES, strict=True):
            subprocess.run(["curl", "-fsSL", "-o", work / name, url], env=_clean(), check=True)
        (work / "Modelfile").write_text(text)
        daemon.cli("create", "bench", "-f", "Modelfile", cwd=work)

    return install


def _bare(hub: LoopbackHub, work: Path) -> Callable[[], None]:
    pairs = [word for url, name in zip(_urls(hub), NAMES, strict=True) for word in (url, name)]

    def fetch() -> None:
        command = [sys.executable, "-c", BARE, *pairs]
        subprocess.run(command, env=_clean() | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, check=True,
                       cwd=work)  # fmt: skip

    return fetch


def _urls(hub: LoopbackHub) -> list[str]:
    return [f"{hub.url}/{REPO}/resolve/main/{name}" for name in NAMES]


def _on_disk(*folders: Path) -> int:
    """Return the bytes of all files in the folders; one with two names counts once."""
    found = (path.stat() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum({(each.st_dev, each.st_ino): each.st_size for each in found}.values())


def _remove(running: RunningDaemon, work: Path) -> None:
    """Begin each round with nothing of the pair, neither here nor at the daemon."""
    daemon = Daemon(running.host)
    with suppress(ModelNotInstalled):
        daemon.delete("bench")
    daemon.close()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()


def _clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
