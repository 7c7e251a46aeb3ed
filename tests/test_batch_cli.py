"""`batch` and `status` as commands: what they say, and their exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llava_ollama.cli import main
from tests.scripted import Heard, Reply, Scripted, colourful, says

PROGRAM = (sys.executable, "-m", "llava_ollama")
NOBODY = "http://127.0.0.1:1"
PROMPT = "Describe this image"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with six pictures, and what is none."""
    monkeypatch.chdir(tmp_path)
    colourful(tmp_path / "pictures", 6)
    Path("pictures/notes.md").write_text("no picture")
    Path("pictures/.hidden.png").write_bytes(b"")
    return tmp_path / "pictures"


def line(daemon: Scripted, *more: str, prompt: str = PROMPT) -> tuple[str, ...]:
    return "batch", "pictures", prompt, "-o", "run", "-m", "tiny", "--host", daemon.url, *more


def call(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="llava-ollama")
    assert done.exit_code == code, done.output
    return done


def events(done: Result) -> list[dict[str, Any]]:
    return [json.loads(one) for one in done.stdout.splitlines()]


@pytest.mark.usefixtures("pictures")
def test_a_run_says_what_it_did_and_what_it_passed_by():
    with Scripted() as daemon:
        done = call(*line(daemon))
    assert done.stdout == "6 answered\n"
    assert "1 files were skipped: they are not named like pictures\n" in done.stderr
    assert "1 hidden files and folders were passed by\n" in done.stderr
    assert "goes on" not in done.stderr


@pytest.mark.usefixtures("pictures")
def test_going_on_says_what_there_is():
    with Scripted() as daemon:
        call(*line(daemon, "--limit", "2"))
        done = call(*line(daemon))
        end = events(call(*line(daemon, "--json")))
    assert "The run goes on: 2 done, 4 to go\n" in done.stderr
    assert done.stdout == "4 answered\n"
    assert len(daemon.asked) == 6
    assert end[0] == {"event": "resumed", "done": 6, "failed": 0, "left": 0}
    assert (end[-1]["event"], end[-1]["done"], end[-1]["left"]) == ("end", 0, 0)
    assert end[-1]["found"] == {
        "skipped": 1,
        "gone": 0,
        "hidden": 1,
        "sidecars": 0,
        "unreadable": 0,
        "seen_before": 0,
    }


@pytest.mark.usefixtures("pictures")
def test_answers_that_are_cut_off_are_told():
    def reply(heard: Heard) -> Reply:
        cut = not heard.is_canary and heard.number % 2
        return {"content": str(says(heard)), "done_reason": "length" if cut else "stop"}

    with Scripted(reply) as daemon:
        done = call(*line(daemon))
    cut = sum(heard.number % 2 for heard in daemon.asked)
    assert f"{cut} answers are cut off at their limit; their finish is `length`\n" in done.stderr
    assert json.loads(call("status", "run", "--json").stdout)["truncated"] == cut
    call("export", "run", "--format", "jsonl")
    rows = [json.loads(one) for one in Path("run/answers.jsonl").read_text().splitlines()]
    assert [row["finish"] for row in rows].count("length") == cut


def test_some_that_fail_are_exit_code_4(pictures: Path):
    (pictures / "torn.png").write_bytes(b"no picture")
    with Scripted() as daemon:
        done = call(*line(daemon), code=4)
    assert "Error: 1 of 8 answers have failed\n" in done.stderr
    told = call("status", "run")
    assert f"{pictures / 'torn.png'}: " in told.stderr
    (failure,) = json.loads(call("status", "run", "--json").stdout)["failures"]
    assert (failure["path"], failure["kind"]) == (str(pictures / "torn.png"), "picture")
    assert failure["error"] in told.stderr


@pytest.mark.usefixtures("pictures")
def test_what_is_made_of_a_run_that_has_not_ended_says_so():
    with Scripted() as daemon:
        call(*line(daemon, "--limit", "2"))
        exported = call("export", "run", "--format", "jsonl")
        shown = call("gallery", "run")
        call(*line(daemon))
    assert "4 of 7 answers are still to come\n" in exported.stderr
    assert "4 of 7 answers are still to come\n" in shown.stderr
    assert json.loads(call("gallery", "run", "--json").stdout)["left"] == 0
    assert "to come" not in call("export", "run", "--format", "jsonl").stderr


@pytest.mark.usefixtures("pictures")
def test_another_prompt_is_exit_code_2():
    with Scripted() as daemon:
        call(*line(daemon))
        done = call(*line(daemon, prompt="Why?"), code=2)
        call(*line(daemon, "--add", prompt="Why?"))
    assert f"the prompt was `{PROMPT}` and is `Why?`" in done.stderr
    assert len(daemon.asked) == 12


@pytest.mark.usefixtures("pictures")
def test_no_host_within_the_wait_is_exit_code_3():
    arguments = ("batch", "pictures", PROMPT, "-o", "run", "-m", "tiny", "--host", NOBODY)
    done = call(*arguments, "--wait", "2", code=3)
    assert "waiting for up to 2 seconds\n" in done.stderr


@pytest.mark.usefixtures("pictures")
def test_the_daemon_that_knows_which_model_is_ours_is_waited_for():
    arguments = ("batch", "pictures", PROMPT, "-o", "run", "--host", NOBODY, "--wait")
    done = call(*arguments, "2", code=3)
    assert done.stderr.count("waiting for up to 2 seconds\n") == 1
    assert "Hint: " in done.stderr
    assert "waiting" not in call(*arguments, "0", code=3).stderr


@pytest.mark.usefixtures("pictures")
def test_a_model_that_does_not_see_is_exit_code_1_with_what_doctor_says(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("LLAVA_OLLAMA_CACHE", "pictures/notes.md")
    with Scripted(lambda _: "A nice picture.") as daemon:
        done = call(*line(daemon), code=1)
    assert "Warning: download folder: " in done.stderr
    assert "Error: the model does not see: of two different pictures it says the same" in (
        done.stderr
    )
    assert not daemon.asked


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            ("pictures", PROMPT),
            "`--run` is missing",
            "Name a folder for the run: `-o run1`",
        ),
        (
            ("pictures", "-o", "run"),
            "the prompt is missing: `pictures` is a file or folder",
            'Write it as `llava-ollama batch pictures "Describe this image" -o run1`',
        ),
        (
            ("--prompt", PROMPT, "-o", "run"),
            "no pictures are named",
            'Write it as `llava-ollama batch pictures "Describe this image" -o run1`',
        ),
        (
            ("pictures", "-o", "pictures", "--prompt", PROMPT, "-m", "tiny"),
            "`pictures` is both the run and a source",
            "Name a folder of its own for the run: `-o run1`",
        ),
        (
            ("nowhere", "a long prompt " * 500, "-o", "run", "-m", "tiny"),
            "`{folder}/nowhere` cannot be read: no such file or directory",
            "Name a folder, a picture or a request file (`.jsonl`) that is there",
        ),
        (
            ("nowhere", PROMPT, "-o", "run", "-m", "tiny"),
            "`{folder}/nowhere` cannot be read: no such file or directory",
            "Name a folder, a picture or a request file (`.jsonl`) that is there",
        ),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str, hint: str, pictures: Path):
    done = call("batch", *arguments, code=2)
    message = message.format(folder=pictures.parent)
    assert done.stderr == f"Error: {message}\nHint: {hint}\n"
    assert not Path("run").exists()


@pytest.mark.usefixtures("pictures")
def test_ctrl_c_is_exit_code_130_and_the_run_goes_on():
    seen: list[dict[str, Any]] = []

    def reply(heard: Heard) -> Reply:
        if len(daemon.asked) == 3:
            # The answer before counts as sent until the disk has it.
            while not seen or (seen[-1]["sending"] > 1 and len(seen) < 20):
                told = subprocess.run(
                    [*PROGRAM, "status", "run", "--json"], capture_output=True, check=True
                )
                seen.append(json.loads(told.stdout))
            process.send_signal(signal.SIGINT)
        return says(heard)

    with Scripted(reply) as daemon:
        process = subprocess.Popen(
            [*PROGRAM, *line(daemon, "--concurrency", "1")], stderr=subprocess.PIPE
        )
        stderr = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 130
        done = call(*line(daemon))
    assert "Error: interrupted\nHint: Run the same command again" in stderr
    assert (seen[-1]["under_way"], seen[-1]["sending"]) == (True, 1)
    assert "The run goes on: 3 done, 3 to go\n" in done.stderr
    assert len(daemon.asked) == 6


@pytest.mark.usefixtures("pictures")
def test_a_closed_standard_input_is_told():
    command = [*PROGRAM, "batch", "--list", "-", "--prompt", PROMPT, "-o", "run", "-m", "tiny"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.decode().startswith("Error: standard input is closed\nHint: Send names")
