"""Download and install from a Hub on this machine, against the card's way: curl, then create."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from llava_ollama import modelfile, resources
from llava_ollama.catalog import LLAMA3_PARAMETERS
from tests.bench import Figure, compare
from tests.daemons import build
from tests.daemons.running import RunningDaemon
from tests.hub import LoopbackHub
from tests.large import padded

ROUNDS = {"tiny": 7, "1 GB": 5}
REPO = "bench/pair"
VERSION = "0.34.4"


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> list[Figure]:
    figures = []
    projector = resources.bundled("tiny-llava-mmproj-f16.gguf")
    small = resources.bundled("tiny-llava-int4.gguf")
    large = padded(small, folder / "large.gguf", 1_000_000_000)
    daemon = RunningDaemon(VERSION, folder / "daemon", build.ensure(VERSION)).start()
    try:
        for label, model in (("tiny", small), ("1 GB", large)):
            with LoopbackHub() as hub:
                hub.publish(model, REPO, name="model.gguf")
                hub.publish(projector, REPO, name="mmproj.gguf")
                ours = _ours(daemon, hub, folder / "ours")
                theirs = _theirs(daemon, hub, folder / "theirs")
                ours(), theirs()
                ratio, _ = compare(ours, theirs, rounds=ROUNDS[label])
            what = f"download and install a pair of {label}"
            against = f"`curl` and `ollama create` of {VERSION}"
            figures.append(Figure(what, against, ratio, None, ROUNDS[label]))
    finally:
        daemon.stop()
    return figures


def _ours(daemon: RunningDaemon, hub: LoopbackHub, folder: Path) -> Callable[[], None]:
    command = [str(Path(sys.executable).with_name("llava-ollama")), "install", "--repo", REPO]
    command += ["--model-file", "model.gguf", "--mmproj-file", "mmproj.gguf", "--name", "ours"]
    environment = {
        **_clean(),
        "OLLAMA_HOST": daemon.host,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "LLAVA_OLLAMA_CACHE": str(folder / "cache"),
        "LLAVA_OLLAMA_STATE": str(folder / "state"),
    }

    def install() -> None:
        _remove(daemon, folder)
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd="/")

    return install


def _theirs(daemon: RunningDaemon, hub: LoopbackHub, folder: Path) -> Callable[[], None]:
    text = modelfile.render(
        modelfile.Modelfile(
            "./model.gguf", "./mmproj.gguf", modelfile.chat_template(), "", LLAMA3_PARAMETERS
        )
    )

    def install() -> None:
        _remove(daemon, folder)
        for name in ("model.gguf", "mmproj.gguf"):
            url = f"{hub.url}/{REPO}/resolve/main/{name}"
            subprocess.run(["curl", "-fsSL", "-o", folder / name, url], env=_clean(), check=True)
        (folder / "Modelfile").write_text(text)
        daemon.cli("create", "ours", "-f", "Modelfile", cwd=folder)

    return install


def _remove(daemon: RunningDaemon, folder: Path) -> None:
    """Begin each round with nothing of the pair, neither here nor at the daemon."""
    if "ours" in daemon.cli("list"):
        daemon.cli("rm", "ours")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
