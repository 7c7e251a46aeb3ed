"""`batch` and `status` as a user has them, with llama.cpp in the process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llava_ollama.cli import main
from tests.batches import drawn

PROMPT = "Describe this image"
MODEL = ("--embedded", "tiny-llava")


def call(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, prog_name="llava-ollama")
    assert done.exit_code == code, done.output
    return done


def states(run: str = "run") -> dict[str, int]:
    found: dict[str, int] = json.loads(call("status", run, "--json").stdout)["states"]
    return {state: count for state, count in found.items() if count}


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "desk"
    drawn(place, 5)
    monkeypatch.chdir(place)
    return place


@pytest.mark.embedded
def test_a_run_in_the_pictures_own_folder_goes_on_without_its_prompt(desk: Path):
    (desk / "notes.pdf").write_text("no picture")
    done = call("batch", ".", PROMPT, "-o", "run", *MODEL)
    assert done.stdout == "5 answered\n"
    assert "1 files were skipped" in done.stderr
    drawn(desk, 6)
    done = call("batch", ".", "-o", "run", *MODEL)
    assert done.stdout == "1 answered\n"
    assert "The run goes on: 5 done" in done.stderr
    assert states() == {"done": 6, "skipped": 1}


@pytest.mark.embedded
def test_a_sample_ends_and_the_rest_is_for_another_time():
    assert call("batch", ".", PROMPT, "-o", "run", "--sample", "2", *MODEL).stdout == (
        "2 answered, 3 left\n"
    )
    assert states() == {"done": 2, "pending": 3}


@pytest.mark.embedded
def test_a_name_in_a_list_that_is_not_there_is_told(desk: Path):
    (desk / "names").write_text("0001.png\nnope.png\n")
    done = call("batch", "--list", "names", PROMPT, "-o", "run", *MODEL)
    assert "1 pictures that are named are not there" in done.stderr
    assert states() == {"done": 1, "gone": 1}


@pytest.mark.embedded
def test_where_nothing_is_a_picture_that_is_an_error(desk: Path):
    (desk / "empty").mkdir()
    done = call("batch", "empty", PROMPT, "-o", "run", *MODEL, code=2)
    assert done.stderr.splitlines()[-2] == "Error: no picture was found"
