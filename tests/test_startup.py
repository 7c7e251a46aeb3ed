"""How the program starts: light, and with a help text for every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from llava_ollama import __version__
from llava_ollama.cli import COMMANDS, main
from llava_ollama.cli.frame import SUMMARIES

HEAVY = {
    *("ollama", "httpx", "huggingface_hub", "PIL", "jinja2", "rich", "xllamacpp"),
    *("httpx2", "pydantic", "tenacity", "filelock"),
}
BIN = Path(sys.executable).parent


def _loaded(code: str) -> set[str]:
    """Return the packages that another interpreter has loaded after `code`."""
    tell = "import json, sys; sys.stdout.write('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tell}"], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def _calling(*arguments: str) -> str:
    return (
        "from llava_ollama.cli import main\n"
        f"try: main({list(arguments)!r}, prog_name='llava-ollama')\n"
        "except SystemExit as exc: assert exc.code == 0, exc.code"
    )


@pytest.mark.parametrize(
    "code",
    ["import llava_ollama", _calling("--help"), _calling("--version")],
    ids=["import", "help", "version"],
)
def test_nothing_heavy_is_loaded_at_the_start(code: str):
    assert not _loaded(code) & HEAVY


def test_no_command_loads_anything_heavy_for_its_help():
    calls = "\n".join(_calling(name, "--help") for name in COMMANDS)
    assert not _loaded(calls) & HEAVY


def test_the_list_of_commands_says_what_their_own_help_says():
    assert list(SUMMARIES) == list(COMMANDS)
    for name in COMMANDS:
        with click.Context(main) as ctx:
            command = main.get_command(ctx, name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == SUMMARIES[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_in_a_narrow_terminal(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert f"llava-ollama {name}" in " ".join(done.stdout.split()).replace("main", "llava-ollama")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Usage:")]
    assert max(map(len, lines)) <= 40


def test_the_program_helps_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    done = CliRunner().invoke(main, ["--help"])
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 50  # examples are never broken


def test_the_program_alone_shows_its_help():
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 2
    assert done.stderr == CliRunner().invoke(main, ["--help"]).stdout


@pytest.mark.parametrize(
    "program", [[str(BIN / "llava-ollama")], [sys.executable, "-m", "llava_ollama"]]
)
def test_both_ways_to_start_are_the_same_program(program: list[str]):
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"llava-ollama, version {__version__}\n"
