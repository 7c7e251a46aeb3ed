"""What is said where a cluster cannot be used: one sentence, one hint, the exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ollama import __version__
from llava_ollama.batch import roster
from llava_ollama.batch.captioner import Captioner
from llava_ollama.errors import (
    DaemonUnreachable,
    EngineUnavailable,
    LlavaOllamaError,
    ModelNotInstalled,
    RunnerCrashed,
    UsageProblem,
)
from tests.daemons.running import free_port

PROGRAM = "from llava_ollama.cli import main; main(prog_name='llava-ollama')"
WITHOUT = f"import sys; sys.modules['ray'] = None\n{PROGRAM}"
EMBEDDED = ("--embedded", "tiny-llava")
CASES = {
    "not installed": (
        (*EMBEDDED, "--ray", "auto"),
        "running on a cluster needs the package `ray`",
        "pip install 'llava-ollama[ray]'",
        1,
    ),
    "Ray's client": (
        (*EMBEDDED, "--ray", "ray://head:10001"),
        "`ray://head:10001` is not the address of a cluster as its own nodes see it",
        "Run this on a node of it, and write `auto`, or `host:port` of its head",
        2,
    ),
    "no address": (
        (*EMBEDDED, "--ray", "head"),
        "`head` is not the address of a Ray cluster",
        "Write `auto`, or `host:port` of its head, as `ray start` prints it",
        2,
    ),
    "nobody there": (
        (*EMBEDDED, "--ray", "127.0.0.1:{port}"),
        "no Ray cluster answers at `127.0.0.1:{port}`",
        "Start one: `ray start --head` here, and `ray start --address=…` elsewhere",
        3,
    ),
    "none on this machine": (
        (*EMBEDDED, "--ray", "auto"),
        (
            "the Ray cluster at `auto` does not let this process in: Could not find any running"
            " Ray instance. Please specify the one to connect to by setting `--address` flag or"
            " `RAY_ADDRESS` environment variable"
        ),
        "Run this on one of its nodes, with the Python and the Ray that they have",
        3,
    ),
    "several hosts": (
        ("--host", "one", "--host", "two", "--ray", "auto"),
        "with `--ray` each node asks one model of its own",
        "Give `--model`, and `--host` as a node sees it; or `--embedded` alone",
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(name: str, tmp_path: Path):
    options, message, hint, code = CASES[name]
    port = str(free_port())
    command = ["batch", ".", "Describe this image", "-o", "run", *options]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT if name == "not installed" else PROGRAM]
        + [word.replace("{port}", port) for word in command],
        cwd=tmp_path,
        env={**os.environ, "RAY_TMPDIR": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == f"Error: {message}\nHint: {hint}\n".replace("{port}", port)
    assert done.returncode == code
    assert not (tmp_path / "run").exists()


NODES: dict[str, tuple[LlavaOllamaError, type, str, str]] = {
    "no nodes": (
        roster.nobody_there([], 600),
        DaemonUnreachable,
        "the cluster has no node that takes work, for 600 seconds",
        "`ray status` shows its nodes; those without CPUs are left alone",
    ),
    "nobody": (
        roster.nobody_there([("one", ModelNotInstalled("`x` is not there", hint="Do it"))], 600),
        ModelNotInstalled,
        "no node of the cluster can answer; `one` says: `x` is not there",
        "Do it",
    ),
    "another version": (
        roster.other_version("one", "9.9"),
        UsageProblem,
        f"`one` has llava-ollama 9.9, and this is {__version__}",
        "Install the same version on all nodes",
    ),
    "another model": (
        roster.other_model("one", "a" * 64, "b" * 64),
        UsageProblem,
        (
            "`one` holds another model (aaaaaaaaaaaa) than this run asks (bbbbbbbbbbbb), so their"
            " answers would not be of one kind"
        ),
        "Install the same one there: llava-ollama install --force",
    ),
    "no pictures": (
        roster.no_pictures("one"),
        UsageProblem,
        "`one` does not find the pictures that are here",
        "Mount their folder there, at the same path",
    ),
    "lost": (
        roster.lost("one"),
        DaemonUnreachable,
        "the node `one` is lost",
        "It is used again if it comes back",
    ),
    "not installed there": (
        roster.died("one", "ModuleNotFoundError: No module named 'llava_ollama'"),
        EngineUnavailable,
        "`one` cannot run this: ModuleNotFoundError: No module named 'llava_ollama'",
        "Install `llava-ollama[ray]` on all nodes",
    ),
    "died": (
        roster.died("one", "it was killed"),
        RunnerCrashed,
        "the process on `one` is gone: it was killed",
        "There may be too little memory; Ray's log of that node says more",
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_what_is_said_of_a_node(name: str):
    error, kind, message, hint = NODES[name]
    assert type(error) is kind
    assert (error.message, error.hint) == (message, hint)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("http://127.0.0.1:11434", "http://gpu7:11434"),
        ("http://localhost:11434/ollama", "http://gpu7:11434/ollama"),
        ("http://[::1]:11434", "http://gpu7:11434"),
        ("http://10.0.0.5:11434", "http://10.0.0.5:11434"),
        ("embedded", "embedded on gpu7"),
    ],
)
def test_a_host_is_known_by_its_node(host: str, known: str):
    assert roster.address(host, "gpu7") == known


def test_a_batch_without_pictures_is_refused():
    with pytest.raises(UsageProblem) as caught:
        Captioner()({"image": [], "label": []})
    assert caught.value.message == "a batch with the columns `image`, `label` has no pictures"
    assert caught.value.hint == (
        "Name the column of paths `path`, or that of file contents `bytes`"
    )
