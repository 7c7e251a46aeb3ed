"""What is said when a run cannot be gone on with: one sentence, one hint, the exit code."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ollama.batch.journal import Config, Journal, Reading
from llava_ollama.batch.requests import read_source
from llava_ollama.batch.sources import Sources
from llava_ollama.batch.work import Ask, Item
from llava_ollama.errors import LlavaOllamaError

CONFIG = Config("tiny", "a" * 64, (Ask("What?", options={"temperature": 0}),))


def _go_on(folder: Path, config: Config = CONFIG) -> None:
    Journal(folder / "run", config, state=folder / "state").close()


def _begun_with(**other: object) -> Callable[[Path], None]:
    def go_on(folder: Path) -> None:
        _go_on(folder)
        _go_on(folder, replace(CONFIG, **other))  # type: ignore[arg-type]

    return go_on


def _under_way(folder: Path) -> None:
    with Journal(folder / "run", CONFIG, state=folder / "state"):
        _go_on(folder)


def _elsewhere(folder: Path) -> None:
    (folder / "run").mkdir()
    pointer = {"folder": "/home/me/journals/1", "machine": "other"}
    (folder / "run" / "journal.json").write_text(json.dumps(pointer))
    Reading(folder / "run")


def _newer(folder: Path) -> None:
    _go_on(folder)
    with closing(sqlite3.connect(folder / "run" / "journal.sqlite3")) as db:
        db.execute("PRAGMA user_version = 99")
    _go_on(folder)


def _damaged(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "journal.sqlite3").write_bytes(b"nothing of SQLite" * 100)
    _go_on(folder)


def _full(folder: Path) -> None:
    with Journal(folder / "run", CONFIG, state=folder / "state") as journal:
        journal.write(lambda db: db.execute("PRAGMA max_page_count = 1"))
        journal.write(lambda db: db.execute("CREATE TABLE other AS SELECT randomblob(1000000)"))
        journal.flush()


def _file(folder: Path) -> None:
    (folder / "run").touch()
    _go_on(folder)


def _below_a_file(folder: Path) -> None:
    (folder / "file").touch()
    Journal(folder / "file" / "run", CONFIG, state=folder / "state")


def _other_line(folder: Path) -> None:
    (folder / "r.jsonl").write_text('{"image": "a.png"}\n')
    read_source(Item(1, str(folder / "r.jsonl"), "", 0))


_OTHERWISE = (
    "Go on with what it was begun with, name another run with `-o`, or add this as a further"
    " question with `--add`"
)
CASES: dict[str, tuple[Callable[[Path], object], str, str, int]] = {
    "no run": (
        lambda folder: Reading(folder / "none"),
        "`{folder}/none` is not a run: it has no journal",
        "Begin one: `llava-ollama batch PICTURES PROMPT -o RUN`",
        2,
    ),
    "a file": (
        _file,
        "`{folder}/run` is a file, and a run is a folder",
        "Name another with `-o`",
        2,
    ),
    "below a file": (
        _below_a_file,
        "the run `{folder}/file/run` cannot be made: not a directory",
        "Mend the permissions of the folder above it, or name another with `-o`",
        1,
    ),
    "a source as well": (
        lambda folder: Sources([folder], leave_out=[folder]),
        "`{folder}` is both the run and a source",
        "Name a folder of its own for the run: `-o run1`",
        2,
    ),
    "under way": (
        _under_way,
        "the run `{folder}/run` is under way in another process",
        "See how far it is: `llava-ollama status {folder}/run`",
        2,
    ),
    "elsewhere": (
        _elsewhere,
        (
            "the journal of `{folder}/run` is `/home/me/journals/1` on the machine `other`, and not"
            " here"
        ),
        "Go on with the run there, or copy that folder's files into the run",
        2,
    ),
    "newer": (
        _newer,
        "the journal `{folder}/run/journal.sqlite3` is of version 99, and this program knows 1",
        "Use the newer llava-ollama that wrote it: `pip install -U llava-ollama`",
        2,
    ),
    "damaged": (
        _damaged,
        "the journal `{folder}/run/journal.sqlite3` is damaged: file is not a database",
        (
            "Save what is readable by `sqlite3 {folder}/run/journal.sqlite3 .recover`, or begin a"
            " new run"
        ),
        1,
    ),
    "full": (
        _full,
        "the disk is full: the journal `{folder}/run/journal.sqlite3` cannot be written",
        "Free some space and run the same command again; every answer in it is safe",
        1,
    ),
    "another prompt": (
        _begun_with(asks=(Ask("Why?", options={"temperature": 0}),)),
        "the run `{folder}/run` was begun otherwise: the prompt was `What?` and is `Why?`",
        _OTHERWISE,
        2,
    ),
    "other options": (
        _begun_with(asks=(Ask("What?", "Be brief", {"seed": 1}),)),
        (
            "the run `{folder}/run` was begun otherwise: the system prompt was none and is `Be"
            " brief`, the option seed was not set and is `1`, the option temperature was `0` and is"
            " not set"
        ),
        _OTHERWISE,
        2,
    ),
    "another model": (
        _begun_with(model_digest="b" * 64),
        (
            "the run `{folder}/run` was begun otherwise: the model was `aaaaaaaaaaaa` and is"
            " `bbbbbbbbbbbb`"
        ),
        _OTHERWISE,
        2,
    ),
    "no source": (
        lambda folder: Sources([folder / "none"]),
        "`{folder}/none` cannot be read: no such file or directory",
        "Name a folder, a picture or a request file (`.jsonl`) that is there",
        2,
    ),
    "another line": (
        _other_line,
        "the picture at byte 0 of `{folder}/r.jsonl` cannot be read: there is none in the line",
        "The file has changed since; run the same command again",
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(name: str, tmp_path: Path) -> None:
    call, message, hint, code = CASES[name]
    with pytest.raises(LlavaOllamaError) as caught:
        call(tmp_path)
    assert str(caught.value).replace(str(tmp_path), "{folder}") == message
    assert str(caught.value.hint).replace(str(tmp_path), "{folder}") == hint
    assert caught.value.exit_code == code
