"""The user's day at the command line, on real daemons of both kinds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llava_ollama.cli import main
from llava_ollama.daemon import Daemon
from llava_ollama.records import Records
from llava_ollama.settings import Settings
from llava_ollama.tiny import demo
from llava_ollama.tiny.shapes import Shape, draw
from tests.conftest import DAEMONS, start
from tests.daemons.running import RunningDaemon

pytestmark = pytest.mark.ollama
RED = "A red circle on a white background."
BLUE = "A blue square on a black background."
QUESTION = "Describe this image"


@pytest.fixture(scope="module", params=DAEMONS)
def empty(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    """A daemon that only this file talks to, so that all it has is known."""
    daemon = start(str(request.param), tmp_path_factory.mktemp(f"cli-{request.param}"))
    yield daemon
    daemon.stop()


@pytest.fixture
def desk(empty: RunningDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningDaemon:
    """The daemon, and a working folder with two pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", empty.host)
    monkeypatch.setenv("OLLAMA_MODELS", str(empty.models))
    draw(Shape("red", "circle", "white")).save("red.png")
    draw(Shape("blue", "square", "black")).save("my picture.png")
    assert state(empty)[0] == set()
    return empty


def state(daemon: RunningDaemon) -> tuple[set[str], set[str]]:
    """Return the names that the daemon lists, and the blobs that it keeps."""
    client = Daemon(daemon.host)
    names = {model.name for model in client.models()}
    client.close()
    # 0.34 orphans two layers at `create`, 96 and 153 bytes: those of a template that it detects
    # in the model, before it takes the one that it is given.
    least = 200 if daemon.version == "0.34.4" else 0
    blobs = (daemon.models / "blobs").glob("*")
    return names, {path.name for path in blobs if path.stat().st_size >= least}


def call(*arguments: str, code: int = 0, **more: Any) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="llava-ollama", **more)
    assert done.exit_code == code, done.output
    return done


def data(*arguments: str, code: int = 0) -> Any:
    return json.loads(call(*arguments, "--json", code=code).stdout)


@pytest.mark.parametrize("quant", ["int4", "f16"])
def test_a_day(quant: str, desk: RunningDaemon):
    name, before = f"tiny-llava-{quant}", state(desk)

    plan = data("install", "tiny-llava", "--quant", quant, "--dry-run")
    assert plan["existing"] == "absent"
    assert [part["transfer"] for part in plan["parts"]] == ["link", "link"]
    assert sum(part["cost"]["written"] for part in plan["parts"]) == 0
    assert state(desk) == before

    done = call("install", "tiny-llava", "--quant", quant, "--check").stdout
    assert done.startswith(f"Installed {name} in ")
    assert f"Checked: drew {RED[0].lower()}{RED[1:-1]}, it said: {RED}\n" in done
    assert done.endswith(f'Try it: ollama run {name} "./picture.png {QUESTION}"\n')

    # The line that the command has just told.
    assert desk.cli("run", name, f"./red.png {QUESTION}", cwd=Path()).strip() == RED
    assert call("ask", "red.png", QUESTION).stdout == f"{RED}\n"
    run = call("run", name, f"red.png {QUESTION}")
    assert (run.stdout, run.stderr) == (f"{RED}\n", "attached red.png\n")
    run = call("run", name, f"{QUESTION}: './my picture.png'")
    assert (run.stdout, run.stderr) == (f"{BLUE}\n", "attached ./my picture.png\n")
    answer = data("ask", "my picture.png", QUESTION, "--model", name)
    assert answer["text"] == BLUE
    assert answer["finish"] == "stop"

    shown = data("show", name)
    assert shown["ours"]
    assert shown["catalog"] == f"tiny-llava {quant}"
    assert shown["package_digest"] == answer["model_digest"]
    assert shown["image_size"] == 112
    assert "112 x 112 pixels" in call("show", name).stdout
    listed = data("list")
    assert [(m["name"], m["ours"], m["vision"]) for m in listed["installed"]] == [
        (name, True, True)
    ]
    assert f"tiny-llava    {quant:<5}" in call("list").stdout

    again = data("install", "tiny-llava", "--quant", quant)
    assert not again["changed"]
    assert again["package_digest"] == shown["package_digest"]
    other = "f16" if quant == "int4" else "int4"
    call("install", "tiny-llava", "--quant", other, "--name", name, code=1)

    findings = data("doctor")["findings"]
    assert {finding["status"] for finding in findings} == {"ok"}
    assert f"{desk.models}" in call("doctor").stdout

    assert data("remove", name) == {"removed": [name]}
    assert state(desk) == before


@pytest.mark.usefixtures("desk")
def test_near_names_are_told():
    call("install", "tiny-llava")
    try:
        for command in (("show",), ("remove",), ("ask", "red.png", QUESTION, "-m")):
            done = call(*command, "tiny-lava-int4", code=1)
            assert done.stderr.endswith("\nHint: Did you mean `tiny-llava-int4`?\n")
        call("install", "tiny-llava", "--quant", "f16")
        done = call("ask", "red.png", QUESTION, code=2)
        assert done.stderr == (
            "Error: 2 models of ours are installed\n"
            "Hint: Choose with `--model`: tiny-llava-f16, tiny-llava-int4\n"
        )
    finally:
        call("remove", "tiny-llava-int4", "tiny-llava-f16")


def test_what_is_not_ours_is_removed_by_force_only(desk: RunningDaemon, tmp_path: Path):
    from llava_ollama.resources import bundled

    text = f"FROM {bundled('tiny-llava-int4.gguf')}\n"
    (tmp_path / "Modelfile").write_text(text)
    desk.cli("create", "theirs", "-f", str(tmp_path / "Modelfile"))
    done = call("remove", "theirs", code=2)
    assert done.stderr.startswith("Error: `theirs` was not installed by this tool\n")
    assert [m["name"] for m in data("list")["installed"]] == ["theirs"]
    assert "theirs" in call("list").stdout
    done = call("ask", "red.png", QUESTION, "-m", "theirs", code=2)
    assert done.stderr.startswith("Error: `theirs` does not see pictures\n")
    call("remove", "theirs", "--force")


def test_what_others_made_of_our_files_is_removed_by_force_only(
    desk: RunningDaemon, tmp_path: Path
):
    name = "tiny-llava-int4"
    call("install", "tiny-llava")
    (tmp_path / "Modelfile").write_text(f'FROM {name}\nSYSTEM "Be short."\n')
    desk.cli("create", "foreign", "-f", str(tmp_path / "Modelfile"))
    desk.cli("cp", name, "copied")
    try:
        for theirs in ("foreign", "copied"):
            done = call("remove", theirs, code=2)
            assert done.stderr.startswith(f"Error: `{theirs}` was not installed by this tool\n")
        catalog, _, others = call("list").stdout.partition("OTHER MODEL")
        assert f"copied, {name}" in catalog.replace(f"{name}, copied", f"copied, {name}")
        assert "foreign" in others
        assert "foreign" not in catalog
        # What has taken our name is not ours because of the record.
        desk.cli("cp", "foreign", name)
        call("remove", name, code=2)
        assert data("show", name)["ours"] is False
    finally:
        call("remove", "--force", "foreign", "copied", name)


def test_the_demo_leaves_the_daemon_as_it_was(desk: RunningDaemon):
    before = state(desk)
    done = call("demo", "--folder", "drawn")
    assert done.stderr.splitlines() == [
        f"tiny-llava through Ollama at {desk.host}:",
        "`drawn/green-triangle-sideways.jpg`: turned by its EXIF orientation",
        "all of it as a batch, to be looked at in a browser: drawn/run/gallery/index.html",
    ]
    lines = done.stdout.splitlines()
    assert lines[0] == f"drawn/red-circle.png: {RED}  [right]"
    assert [line.endswith("[right]") for line in lines] == [True] * 5
    assert state(desk) == before
    pictures = data("demo")["pictures"]
    assert all(Path(item["picture"]).is_file() and item["right"] for item in pictures)
    assert state(desk) == before


def test_ctrl_c_during_the_demo_leaves_the_daemon_as_it_was(desk: RunningDaemon):
    before = state(desk)
    process = subprocess.Popen(
        [sys.executable, "-m", "llava_ollama", "demo"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stderr is not None
    with process:
        # It is said when the model is installed, and before it is loaded.
        assert process.stderr.readline().startswith("tiny-llava through Ollama")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "Error: interrupted\n"
    assert process.returncode == 130
    assert state(desk) == before


@pytest.mark.usefixtures("desk")
def test_a_check_that_fails_is_exit_code_1():
    # Answers of one token cannot name a colour and a shape.
    done = call(
        *("install", "tiny-llava", "--name", "mute", "--parameter", "num_predict=1"),
        *("--parameter", "stop=A", "--check"),
        code=1,
    )
    try:
        assert done.stderr.startswith("Error: the model was shown a red circle on a white")
    finally:
        call("remove", "mute")


def test_what_a_killed_demo_left_is_named_and_cleared(desk: RunningDaemon):
    call("install", "tiny-llava")
    client, records = Daemon(desk.host), Records(Settings.read(host=desk.host).state)
    with demo.reserved(client, records) as name:
        client.copy("tiny-llava-int4", name)
        demo.clear(client, records)  # its writer is alive
        assert client.show(name).has_vision
        record = records.get("installed", desk.host, f"{name}:latest")
        assert record is not None
    assert {model.name for model in client.models()} == {"tiny-llava-int4:latest"}
    # As a kill would leave it: a model and a record, and nobody who holds the lock.
    client.copy("tiny-llava-int4", name)
    records.put("installed", desk.host, f"{name}:latest", record=record)
    fixes = [finding["fix"] for finding in data("doctor")["findings"]]
    assert f"If no demo is running elsewhere: llava-ollama remove --force {name}" in fixes
    call("remove", "tiny-llava-int4")
    assert client.models() == []
    assert records.get("installed", desk.host, f"{name}:latest") is None
    client.close()
