"""The README's commands and code, run as they stand there, on both daemons.

The 8B model cannot be here: a catalog of the test's own lets `llava-llama3` mean the tiny files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_ollama import catalog, resources
from llava_ollama.tiny.shapes import Shape, draw
from tests import published, readme
from tests.daemons import build
from tests.daemons.running import RunningDaemon, free_port
from tests.hub import LoopbackHub

TEXT = readme.README.read_text(encoding="utf-8")
MODEL = resources.bundled("tiny-llava-int4.gguf")
PROJECTOR = resources.bundled("tiny-llava-mmproj-f16.gguf")
CARD = "llava-llama-3-8b-v1_1"
ANSWER = "A red circle on a white background."


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: pictures, the card's files, files of their own."""
    place = tmp_path / "user"
    place.mkdir()
    draw(Shape("red", "circle", "white")).save(place / "xx.png")
    draw(Shape("blue", "star", "grey")).save(place / "before.jpg")
    draw(Shape("green", "star", "grey")).save(place / "after.jpg")
    (place / "pictures").mkdir()
    draw(Shape("red", "circle", "white")).save(place / "pictures" / "one.png")
    draw(Shape("green", "star", "grey")).save(place / "pictures" / "two.jpg")
    shutil.copy(MODEL, place / "A.gguf")
    shutil.copy(PROJECTOR, place / "B.gguf")
    published.published_model(MODEL, place / f"{CARD}-int4.gguf")
    published.published_projector(PROJECTOR, place / f"{CARD}-mmproj-f16.gguf")
    shutil.copy(MODEL, place / "model.gguf")
    shutil.copy(PROJECTOR, place / "mmproj.gguf")
    (place / "stand-in.toml").write_text(
        '[models.llava-llama3]\nparameters = { num_thread = 1 }\nprojector = { file = "B.gguf" }\n'
        'quants.int4 = { file = "A.gguf" }\n'
    )
    return place


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.publish(MODEL, "owner/name", name="A.gguf")
        hub.publish(PROJECTOR, "owner/name", name="B.gguf")
        yield hub


def environment(folder: Path, ollama: RunningDaemon, hub: LoopbackHub) -> dict[str, str]:
    programs = folder.parent / "programs"
    programs.mkdir()
    (programs / "ollama").symlink_to(ollama.binary)
    return {
        **ollama.environment,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder.parent / "hf"),
        "LLAVA_OLLAMA_CATALOG": str(folder / "stand-in.toml"),
        "LLAVA_OLLAMA_CACHE": str(folder.parent / "cache"),
        "LLAVA_OLLAMA_STATE": str(folder.parent / "state"),
    }


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.ollama
def test_shell_blocks_run_as_they_stand(folder: Path, ollama: RunningDaemon, hub: LoopbackHub):
    env = environment(folder, ollama, hub)
    said = []
    (folder / "mmproj.gguf").unlink()  # `mend` does not overwrite
    (folder / "model.gguf").unlink()
    for block in blocks("sh"):
        lines = [line for line in block.splitlines() if not line.startswith("pip ")]
        said.append(run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], folder, env))
    assert said[0].count(ANSWER) == 2
    batched = next(one for one in said if "2 answered" in one)
    assert re.search(r"^done +2$", batched, re.MULTILINE)
    assert (folder / "run1" / "gallery" / "index.html").is_file()
    rows = [json.loads(line) for line in _lines(folder / "run1" / "answers.jsonl")]
    assert [row["state"] for row in rows] == ["done", "done"]
    assert ANSWER in (folder / "pictures" / "one.png.xmp").read_text()
    assert said[1].endswith("Red.\n")
    document = next(json.loads(one) for one in said if one.startswith("{"))
    assert document.keys() == {"colour", "sides"}
    names = ("llava-llama3-int4", "tiny-llava-int4", "mine", "by-hand")
    run(["llava-ollama", "remove", "--force", *names], folder, env)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.ollama
def test_python_for_ollama_runs_as_it_stands(folder: Path, ollama: RunningDaemon, hub: LoopbackHub):
    env = environment(folder, ollama, hub)
    run(["llava-ollama", "install"], folder, env)
    said = run([sys.executable, "-W", "error", "-c", blocks("python")[0]], folder, env)
    assert said.startswith(ANSWER)
    assert said.rstrip().endswith("Red.")
    said = run([sys.executable, "-W", "error", "-c", blocks("python")[1]], folder, env)
    assert re.fullmatch(r"(red|green|blue|yellow) \w+\n\d+ tokens\n", said)
    run(["llava-ollama", "remove", "llava-llama3-int4"], folder, env)


@pytest.mark.ollama
def test_python_without_ollama_runs_as_it_stands(folder: Path):
    port = free_port()
    server = build.cache_root() / f"llama-{build.LLAMA_CPP}" / "llama-server"
    files = ["--model", str(MODEL), "--mmproj", str(PROJECTOR)]
    command = [str(server), *files, "--port", str(port), "-t", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            code = "".join(
                f"with {line.partition('#')[0].strip()} as llava:\n"
                f"    print(llava.ask('xx.png', options={{'temperature': 0}}))\n"
                for line in blocks("python")[2].replace(":8080", f":{port}").splitlines()
            )
            code = f"from llava_ollama import Llava\n{_WAIT.format(port=port)}\n{code}"
            env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
            said = run([sys.executable, "-W", "error", "-c", code], folder, env)
        finally:
            process.terminate()
    assert said.splitlines() == [ANSWER] * 3


_WAIT = """
import time, urllib.request
for _ in range(200):
    try:
        if urllib.request.urlopen("http://127.0.0.1:{port}/health").status == 200:
            break
    except OSError:
        time.sleep(0.05)
"""


@pytest.mark.ollama
def test_tests_of_ones_own_run_as_they_stand(folder: Path, ollama: RunningDaemon):
    example = next(block for block in blocks("python") if "def test_" in block)
    (folder / "test_example.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", "."]
    env = {"PATH": f"{ollama.binary.parent}:{os.environ['PATH']}", "HOME": str(folder)}
    assert "2 passed" in run([*command, "--llava-require-daemon"], folder, env)


@pytest.mark.ollama
def test_demo_prints_what_the_readme_shows(folder: Path, ollama: RunningDaemon, hub: LoopbackHub):
    command, _, shown = blocks("console")[0].partition("\n")
    assert command == "$ make demo"
    assert run(["llava-ollama", "demo"], folder, environment(folder, ollama, hub)) == shown


@pytest.mark.embedded
def test_demo_prints_the_same_without_a_daemon(folder: Path):
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "OLLAMA_HOST": "127.0.0.1:1"}
    command = [str(Path(sys.executable).with_name("llava-ollama")), "demo"]
    assert run(command, folder, env) == blocks("console")[0].partition("\n")[2]


def test_catalog_example_can_be_loaded(folder: Path):
    example = folder / "catalog.toml"
    example.write_text(blocks("toml")[0].replace("# parameters", "parameters"))
    entry = catalog.load(example).entry("mine")
    assert entry.model(None)[0] == "q8"
    assert entry.parameters == {"num_ctx": 8192}


def test_generated_parts_are_fresh():
    assert readme.check() == 0
